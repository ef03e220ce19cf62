"""What `import afmrl_jax` offers, and what it does not load."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import afmrl_jax
from afmrl_jax import RunConfig

HEAVY = ("jax", "flax", "optax", "orbax", "grain", "transformers", "numpy", "PIL", "tyro", "scipy")


def loaded(code, names):
    """Which of some packages are loaded after a line of code, in a process of its own."""
    code = f"{code}; import sys; print([x for x in {names!r} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_import_loads_nothing_heavy():
    assert loaded("import afmrl_jax", HEAVY) == "[]"


def test_grains_workers_load_no_jax_of_ours():
    """Grain itself imports JAX where it is installed, so an empty module stands in for it."""
    stand_in = "import sys, types; sys.modules['grain'] = types.ModuleType('grain')"
    heavy = ("jax", "flax", "optax", "orbax", "transformers")
    code = f"{stand_in}; import afmrl_jax.data.sources.loader, afmrl_jax.data.sources.contrastive"
    assert loaded(code, heavy) == "[]"


@pytest.mark.parametrize("name", sorted(afmrl_jax.__all__))
def test_every_public_name_resolves_and_explains_itself(name):
    found = getattr(afmrl_jax, name)
    assert name in dir(afmrl_jax)
    if name != "__version__" and isinstance(found, type | type(loaded)):
        # A dataclass without a docstring gets its signature as one.
        assert len((found.__doc__ or "").split()) > 3
        assert not found.__doc__.startswith(f"{name}(")


def test_every_lazy_name_is_public():
    assert set(afmrl_jax._MODULE) | {"__version__"} == set(afmrl_jax.__all__)
    assert afmrl_jax.RunConfig is RunConfig


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        afmrl_jax.Embeder  # noqa: B018


def test_the_literal_twin_of_the_loss_agrees_with_it(rng):
    vectors = rng.normal(size=(2, 6, 8)).astype(np.float32)
    queries, candidates = jnp.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
    bm25 = jnp.asarray(rng.random((6, 6)), jnp.float32)
    products = jnp.array([0, 1, 2, 3, 3, 4])
    settings = {"gamma": 0.3, "delta": 0.2, "agreement_rho": 0.8}
    ours, _ = afmrl_jax.agcl_loss(queries, candidates, bm25, products, **settings)
    literal, metrics = afmrl_jax.agcl_loss_reference(
        queries, candidates, bm25, products, **settings
    )
    np.testing.assert_allclose(ours, literal, rtol=1e-6)
    assert metrics["masked_by_identity"] > 0
