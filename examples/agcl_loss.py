"""The AGCL loss on vectors of one's own: python examples/agcl_loss.py.

Four products, of which two share their attributes. Their pairs weigh more as negatives, because
the embedder must learn to tell them apart.
"""

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax import agcl_loss, agcl_loss_reference


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [n d] of length 1, which the loss needs."""
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def main() -> None:
    """Print the loss, and check value and gradient against the literal equation."""
    rng = np.random.default_rng(0)
    queries = unit(jnp.asarray(rng.normal(size=(4, 16)), jnp.float32))
    candidates = unit(queries + 0.3 * jnp.asarray(rng.normal(size=(4, 16)), jnp.float32))
    # BM25 scores of attributes; usually made from texts, see `afmrl_jax.bm25_scores`.
    bm25 = jnp.asarray([[5, 4, 0, 0], [4, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 5]], jnp.float32)
    products = jnp.arange(4)

    loss, metrics = agcl_loss(queries, candidates, bm25, products, gamma=1.0, delta=0.1)
    print(f"loss {float(loss):.4f}, accuracy {float(metrics['accuracy']):.2f}")

    def slope(function):  # type: ignore[no-untyped-def]
        def value(vectors: jax.Array) -> jax.Array:
            return function(unit(vectors), candidates, bm25, products, gamma=1.0, delta=0.1)[0]

        return jax.jit(jax.grad(value))(queries)

    difference = jnp.abs(slope(agcl_loss) - slope(agcl_loss_reference)).max()
    print(f"largest difference to the literal gradient: {float(difference):.1e}")


if __name__ == "__main__":
    main()
