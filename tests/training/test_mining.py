"""Hard negatives: which are chosen, the batches that hold them, and resuming between searches."""

import dataclasses
import shutil
from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.config import AgclConfig, ImageConfig, MiningConfig, ModelSettings, TextBudget
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.sources.mined_negatives import MinedTables, NegativeTable, fill_up
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import RunError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.objectives.agcl import agcl_loss
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.retrieval.scann import ScannIndex
from afmrl_jax.testing import tiny_config
from afmrl_jax.training import loop
from afmrl_jax.training.agcl import MINED, contrastive_source, train_agcl
from afmrl_jax.training.mining import choose_negatives, mine, positive_scores
from afmrl_jax.training.partition import Partition


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute_force(vectors, products, settings):
    """The rules, listing by listing."""
    out = []
    for row, vector in enumerate(vectors):
        scores = vectors @ vector
        own = [n for n in range(len(vectors)) if products[n] == products[row] and n != row]
        positive = np.mean([scores[n] for n in own]) if own else np.inf
        near = sorted(range(len(vectors)), key=lambda n: -scores[n])[: settings.depth]
        kept = []
        for n in near:
            if products[n] == products[row]:
                continue
            limit = np.inf
            if settings.margin is not None and own:
                limit = positive - (1 - settings.margin) * abs(positive)
            if scores[n] <= limit:
                kept.append(n)
        kept = kept[settings.skip :][: settings.hard_negatives]
        out.append(kept + [-1] * (settings.hard_negatives - len(kept)))
    return np.array(out)


@pytest.mark.parametrize(
    "settings",
    [
        MiningConfig(3, depth=40),
        MiningConfig(3, depth=40, margin=None),
        MiningConfig(2, depth=40, margin=0.8, skip=3),
        MiningConfig(5, depth=6, margin=0.9),
    ],
)
def test_the_hardest_that_may_be_held_against_a_listing(rng, settings):
    products = rng.integers(0, 12, 40)
    centres = rng.normal(size=(13, 6))
    vectors = unit(centres[products] + 0.7 * rng.normal(size=(40, 6))).astype(np.float32)
    order = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, : settings.depth]
    scores = np.take_along_axis(vectors @ vectors.T, order, axis=1)
    positives = positive_scores(vectors, products)
    found = choose_negatives(order, scores, positives, products, products, settings)
    np.testing.assert_array_equal(found, brute_force(vectors, products, settings))
    assert (found == -1).any() or settings.depth == 40
    assert (found >= 0).any()


def test_missing_negatives_are_filled_with_other_products_and_the_rest_is_kept(rng):
    identity = np.array([0, 0, 1, 1, 1, 1, 2])
    mined = np.array([[2, -1], [-1, -1], [0, 6]])
    queries = np.array([0, 2, 3])
    for _ in range(20):
        filled = fill_up(mined, queries, identity, rng)
        np.testing.assert_array_equal(filled[mined >= 0], mined[mined >= 0])
        assert (identity[filled] != identity[queries][:, None]).all()
    with pytest.raises(RunError, match="one product"):
        fill_up(mined, queries, np.zeros(7, int), rng)


def test_tables_go_by_segment_and_broken_or_missing_ones_are_named(tmp_path, rng):
    tables = MinedTables(tmp_path / "agcl" / "mined", every=10, count=2)
    table = NegativeTable(rng.integers(0, 9, (5, 2)).astype(np.int32), "abc")
    table.save(tables.path(23))
    assert tables.path(20) == tables.path(29) != tables.path(30)
    np.testing.assert_array_equal(tables[25].places, table.places)
    assert tables[25].embedder == "abc"
    with pytest.raises(RunError, match=r"step-000030.npz are missing; delete .*agcl to run"):
        tables[30]
    tables.path(30).write_bytes(b"no archive")
    with pytest.raises(RunError, match="holds no mined negatives"):
        tables[30]
    np.savez(tables.path(30), places=table.places.astype(float), embedder=np.array("abc"))
    with pytest.raises(RunError, match="no table of the training listings"):
        NegativeTable.load(tables.path(30))
    good = tables.path(20).read_bytes()
    for place in range(0, len(good), 7):
        tables.path(40).write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        with suppress(RunError):  # Dates and the like may change unseen; the numbers may not.
            np.testing.assert_array_equal(NegativeTable.load(tables.path(40)).places, table.places)
    changed = NegativeTable(table.places[::-1], "abc")
    changed.save(tables.path(20))
    np.testing.assert_array_equal(tables[20].places, changed.places)
    assert not list(tmp_path.rglob("*.partial"))


def builder_of(listings, tokenizer):
    return RowBuilder.of(listings, tokenizer, ImageConfig(max_pixels=48 * 48), TextBudget())


@pytest.fixture
def builder(badge_listings, tokenizer):
    return builder_of(badge_listings, tokenizer)


@pytest.fixture
def encoder(tokenizer):
    return encoder_of(tokenizer)


def encoder_of(tokenizer):
    ids = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    architecture = Architecture.of(tiny_config("qwen2_vl", **ids))
    return Encoder.on(make_mesh(1, 1), architecture, architecture.init(0), 40)


def settings(**mining):
    return AgclConfig(
        steps=4, batch_size=4, sibling_share=0, mining=MiningConfig(2, depth=60, **mining)
    )


def test_batches_hold_the_mined_listings_behind_the_candidates(builder, encoder, tmp_path):
    own = settings(margin=None)
    tables = MinedTables(tmp_path, own.mining.every, own.mining.hard_negatives)
    source = contrastive_source(builder, own, 0, mined=tables)
    places = mine(encoder, builder, source.identity, own.mining)
    assert (places >= 0).all()
    NegativeTable(places, "x").save(tables.path(0))
    plain = contrastive_source(builder, own, 0)
    for step in range(4):
        queries, candidates = source.draw(step)
        assert (queries == plain.draw(step)[0]).all()
        np.testing.assert_array_equal(candidates[4:], places[queries].ravel())
        batch, without = source[step], plain[step]
        assert without.candidate_products is None
        assert len(batch.rows.tokens) == 4 + 4 + 8
        assert len(batch.candidate_terms) == len(batch.candidate_products) == 12
        np.testing.assert_array_equal(batch.candidate_products[:4], batch.products)
        own_of = np.repeat(batch.products, 2)
        assert (batch.candidate_products[4:] != own_of).all()
        # The pairs' rows are those of a batch without hard negatives, dropout included.
        width = without.rows.tokens.shape[1]
        np.testing.assert_array_equal(batch.rows.tokens[:8, :width], without.rows.tokens)


def test_an_approximate_index_finds_much_the_same(builder, encoder):
    products = np.unique([x.product_id for x in builder.listings], return_inverse=True)[1]
    own = MiningConfig(2, depth=60)
    exact = mine(encoder, builder, products, own)
    scann = mine(encoder, builder, products, own, index=ScannIndex)
    assert (exact == scann).mean() > 0.95


def train(folder, tiny_run, builder, encoder, mining):
    config = dataclasses.replace(tiny_run, save_every=2)
    mesh = make_mesh(1, 1)
    stage = dataclasses.replace(settings(), steps=8, mining=mining, delta=0.2, gamma=0.1)
    params = jax.tree.map(jnp.copy, encoder.params)  # The step donates what it is given.
    trainee = Partition.of(encoder.architecture, params, ModelSettings(), mesh)
    texts = {x.listing_id: f"shape: {x.product_id}" for x in builder.listings}
    lists = Lists(texts)
    found = train_agcl(config, stage, "agcl", folder, trainee, builder, attributes=lists, seed=0)
    return {name: np.asarray(value) for name, value in found.items()}


def test_all_queries_are_contrasted_with_all_hard_negatives(rng):
    queries, candidates = unit(rng.normal(size=(4, 6))), unit(rng.normal(size=(10, 6)))
    products, columns = np.arange(4), np.array([0, 1, 2, 3, 4, 1, 5, 6, 0, 7])
    logits = queries @ candidates.T / 0.1
    logits[(products[:, None] == columns) & ~np.eye(4, 10, dtype=bool)] = -np.inf
    forward = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    # The hard negatives are no queries of the other direction.
    backward = np.log(np.exp(logits[:, :4]).sum(0)) - np.diag(logits)
    arrays = [np.float32(x) for x in (queries, candidates, np.zeros((4, 10)))]
    ids = [np.int32(x) for x in (products, columns)]
    loss, metrics = agcl_loss(
        *arrays, ids[0], candidate_product_ids=ids[1], temperature=0.1, gamma=0.0
    )
    assert float(loss) == pytest.approx((forward.mean() + backward.mean()) / 2, rel=1e-5)
    assert float(metrics["masked_by_identity"]) == pytest.approx(2 / 36)


MINING = MiningConfig(2, every=3, depth=60)


@pytest.fixture(scope="module")
def reference(tiny_run, badge_listings, tokenizer, tmp_path_factory):
    """Weights and folder of a run that nothing killed."""
    folder = tmp_path_factory.mktemp("whole")
    models = encoder_of(tokenizer)
    return train(folder, tiny_run, builder_of(badge_listings, tokenizer), models, MINING), folder


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights_and_tables(
    reference, tiny_run, builder, encoder, tmp_path, monkeypatch
):
    """It dies in a segment, before a checkpoint, at a search, and behind one."""
    expected, whole = reference
    plain, left, known = loop.place_batch, 0, {}

    def dying(batch, mesh):
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return plain(batch, mesh)

    def tables():
        return {p.name: p.stat().st_mtime_ns for p in (tmp_path / MINED).iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr(loop, "place_batch", dying)
        # Steps are kept in pairs: the starts are at 0, 2, 2 and 4, the deaths at 2, 3, 5 and 6.
        for left in (3, 2, 4, 3):
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path, tiny_run, builder, encoder, MINING)
            assert left == 0
            # What a killed run had found was not searched again.
            assert known.items() <= tables().items()
            known = tables()
    weights = train(tmp_path, tiny_run, builder, encoder, MINING)
    for name, value in expected.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert sorted(known) == ["step-000000.npz", "step-000003.npz", "step-000006.npz"]
    assert tables() == known
    for name in known:
        one, two = (NegativeTable.load(f / MINED / name) for f in (tmp_path, whole))
        assert one.embedder == two.embedder
        np.testing.assert_array_equal(one.places, two.places)


def test_segments_are_mined_by_the_weights_of_their_step(
    reference, tiny_run, builder, encoder, tmp_path
):
    weights, whole = reference
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    tables = MinedTables(tmp_path / MINED, 3, MINING.hard_negatives)
    found = {step: tables[step].embedder for step in (0, 3, 6)}
    assert len({*found.values()}) == 3
    without = train(tmp_path / "plain", tiny_run, builder, encoder, MiningConfig())
    assert any((weights[name] != without[name]).any() for name in weights)
    assert not (tmp_path / "plain" / MINED).exists()
    # A table by other weights than the run has is not believed.
    shutil.rmtree(tmp_path / "checkpoints")
    stale = NegativeTable(tables[3].places * 0, "other weights")
    stale.save(tables.path(3))
    again = train(tmp_path, tiny_run, builder, encoder, MINING)
    assert tables[3].embedder == found[3]
    for name, value in weights.items():
        np.testing.assert_array_equal(again[name], value)
