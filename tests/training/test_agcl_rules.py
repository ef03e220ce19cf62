"""How a stage's settings become the rule of its loss: warm-up, teacher, oracle, placebo."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import AgclConfig
from afmrl_jax.data.sources.batches import ContrastiveBatch, Judges
from afmrl_jax.errors import RunError
from afmrl_jax.objectives.agcl import agcl_loss
from afmrl_jax.objectives.agcl_kernels.rules import PAPER, Weighting
from afmrl_jax.training.agcl import judges_of, loss_options

COUNT = 4
ROWS = jnp.zeros((2 * COUNT, 1))
KEY = jax.random.key(0)


def batch(judges=None):
    sides = (None, None) if judges is None else (judges, judges)
    products = jnp.arange(COUNT, dtype=jnp.int32)
    return ContrastiveBatch(ROWS, products, query_judges=sides[0], candidate_judges=sides[1])


def test_the_default_asks_for_nothing_that_is_new():
    found = loss_options(AgclConfig(), batch(), jnp.int32(0), KEY)
    assert found["weighting"] == PAPER
    assert found["delta"] == AgclConfig().delta
    assert (found["teacher"], found["oracle_ids"], found["placebo_key"]) == (None, None, None)


def test_masks_wait_and_weights_do_not():
    """Every pair scores above its positive, and shares most of its terms with it."""
    settings = AgclConfig(
        steps=10,
        mask_warmup=0.3,
        delta=0.1,
        agreement_rho=0.5,
        positive_weight="neutral",
        weighted_pairs="agreeing",
    )
    assert settings.warmup_steps == 3
    queries = jnp.eye(COUNT)
    candidates = jnp.roll(queries, 1, axis=0)
    bm25 = jnp.full((COUNT, COUNT), 3.0)

    @jax.jit
    def metrics(done):
        options = loss_options(settings, batch(), done, KEY)
        return agcl_loss(queries, candidates, bm25, jnp.arange(COUNT), **options)[1]

    before, after = metrics(jnp.int32(2)), metrics(jnp.int32(3))
    for reason in ("margin", "agreement"):
        assert float(before[f"masked_by_{reason}"]) == 0
        assert float(after[f"masked_by_{reason}"]) > 0
    heavy, light = np.exp(1 + np.tanh(0.3)), np.e
    mean = ((COUNT - 1) * heavy + light) / COUNT
    assert float(before["mean_weight"]) == pytest.approx(mean, rel=1e-6)


def test_settings_reach_the_loss():
    taught, numbers = np.eye(COUNT, dtype=np.float32), np.arange(COUNT, dtype=np.int32)
    settings = AgclConfig(
        agreement_rho=0.9,
        positive_weight="neutral",
        weighted_pairs="agreeing",
        normalize_weights=True,
        permute_weights=True,
        teacher_share=0.9,
        oracle_mask="product",
    )
    found = loss_options(settings, batch(Judges(taught, numbers)), jnp.int32(0), KEY)
    assert found["weighting"] == Weighting("neutral", "agreeing", True)
    assert found["teacher"].share == 0.9
    assert found["teacher"].candidates is taught
    assert found["oracle_ids"][0] is numbers
    assert found["placebo_key"] is KEY


@pytest.fixture
def listings(badge_listings):
    first, second, *others = badge_listings
    again = dataclasses.replace(second, product_id="another", duplicate_of=first.product_id)
    return [dataclasses.replace(first, family_id="f"), again, *others]


def test_the_oracle_knows_true_products_or_families(listings):
    found = {
        x: judges_of("agcl", AgclConfig(oracle_mask=x), listings, None).oracle
        for x in ("product", "family")
    }
    for numbers, names in (
        (found["product"], [x.true_product for x in listings]),
        (found["family"], [x.group for x in listings]),
    ):
        same = np.array(names)[:, None] == np.array(names)[None]
        np.testing.assert_array_equal(numbers[:, None] == numbers[None], same)
    assert found["product"][0] == found["product"][1]


def test_a_teacher_is_needed_only_where_one_is_asked(listings):
    vectors = np.ones((len(listings), 2), np.float32)
    assert judges_of("agcl", AgclConfig(), listings, vectors) is None
    asked = AgclConfig(teacher_share=0.95)
    assert judges_of("agcl", asked, listings, vectors).teacher is vectors
    with pytest.raises(RunError, match=r"agcl: .*has none: .*or set --agcl\.teacher-share None"):
        judges_of("agcl", asked, listings, None)
    with pytest.raises(RunError, match="not finite"):
        judges_of("agcl", asked, listings, vectors * np.nan)
