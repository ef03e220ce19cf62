"""A reward of one's own for RAR: python examples/custom_reward.py.

To train with it, put this folder on PYTHONPATH and pass `--rar.reward custom_reward:first_page`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from afmrl_jax import Outcome, group_advantages


def first_page(outcome: Outcome) -> jax.Array:
    """1 for first place, less for each place after it, 0 beyond the first k; [q g]."""
    rank = jnp.asarray(outcome.rank, jnp.float32)
    return jnp.maximum(0.0, 1.0 - (rank - 1.0) / outcome.k)


def main() -> None:
    """What the reward, and the advantages made of it, are for two queries of four lists each."""
    rank = np.array([[1, 2, 6, 40], [3, 3, 3, 3]], np.int32)
    outcome = Outcome(
        rank=rank,
        ranks=rank[..., None],
        positives=np.ones(2, np.int32),
        margin=np.zeros(rank.shape, np.float32),
        tokens=np.full(rank.shape, 12, np.int32),
        attributes=np.full(rank.shape, 4, np.int32),
        budget=48,
        k=10,
    )
    reward = first_page(outcome)
    malformed = jnp.zeros(rank.shape, bool)
    print("reward\n", np.asarray(reward))
    print("advantages\n", np.asarray(group_advantages(reward, malformed)))


if __name__ == "__main__":
    main()
