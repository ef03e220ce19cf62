"""Pretraining of the demo's models: the pool, the batches, and the whole command at a tiny size."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import jax
import numpy as np
import pytest

from afmrl_jax.config import MarketplaceSettings
from afmrl_jax.data.attributes.text_format import parse_attributes
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.marketplace.lists import canonical
from afmrl_jax.data.marketplace.world import ATTRIBUTES, VISIBLE, allowed
from afmrl_jax.models.huggingface.folder import load_model
from afmrl_jax.training.state import initial_state
from experiments.studies.pretrain import pool as pools
from experiments.studies.pretrain import reading
from experiments.studies.pretrain.optimizer import make_muon
from experiments.studies.pretrain.pool import PHOTOS, Pool
from experiments.studies.pretrain.reading import VIEWS, ReadingSource
from experiments.studies.pretrain.sources import Material, PairSource, WritingSource
from experiments.studies.pretrain.tower import (
    KNOWN,
    TowerSource,
    make_tower_step,
    trainable,
    values_seen,
)
from experiments.studies.pretrain_demo import IMAGE, TEXT, Sizes, architecture

SIZE = 2 * pools.SHARD


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return Pool.drawn(tmp_path_factory.mktemp("pool"), 3, SIZE, 2)


@pytest.fixture(scope="module")
def material(pool):
    return Material(pool, BpeTokenizer.train(pool.texts(200), 600), IMAGE, TEXT)


def test_a_lost_shard_is_drawn_again_as_it_was(pool, tmp_path):
    copy = tmp_path / "pool"
    shutil.copytree(pool.folder, copy / pool.folder.name)
    path, words = pools._names(copy / pool.folder.name, 1)
    before = path.read_bytes(), words.read_bytes()
    path.unlink()
    Pool.drawn(copy, 3, SIZE, 1)
    assert (path.read_bytes(), words.read_bytes()) == before
    assert pool.pixels(0, 0).shape == (96, 96, 3)
    assert not np.array_equal(pool.pixels(0, 0), pool.pixels(0, 1))


def test_what_is_written_counts_and_nothing_else(material):
    source = WritingSource(material, 10, 12, 0)
    batch, (rows, starts, _) = source[4], source._rows(4)
    counted = batch.weights > 0
    assert counted.sum() == sum(len(row.tokens) - n for row, n in zip(rows, starts, strict=True))
    written = sorted(
        material.tokenizer.decode(x.tokens[n:-1]) for x, n in zip(rows, starts, strict=True)
    )
    words = [material.pool.words(int(n)) for n in range(SIZE)]
    known = {text for x in words for text in (*x.captions, *x.lists)}
    assert known.issuperset(written)
    # By segment, the targets are those texts.
    ends = [material.tokenizer.eos_id]
    assert np.isin(ends, batch.targets[counted]).all()
    pictured = [bool(row.pictures) for row in rows]
    assert any(pictured)
    again = WritingSource(material, 10, 12, 0)[4]
    np.testing.assert_array_equal(again.rows.bins.tokens, batch.rows.bins.tokens)


def test_pairs_are_two_offers_of_a_product_seen_alike(material):
    source = PairSource(material, 40, 6, 0)
    seen = set()
    for step in range(20):
        one, other = source.view(step)
        seen.add((one, other))
        rows, numbers = source._rows(step)
        assert len(rows) == 2 * len(numbers)
        for side, part in ((one, rows[:6]), (other, rows[6:])):
            assert {bool(row.pictures) for row in part} == {side != "text"}
        assert len(source[step].rows.last) == 12
    assert len(seen) == 6
    both = next(step for step in range(20) if source.view(step) == ("both", "both"))
    rows, numbers = source._rows(both)
    for number, query, target in zip(numbers, rows[:6], rows[6:], strict=True):
        photos = [material.picture(int(number), n)[0].pixels for n in range(PHOTOS)]
        own = [
            next(p for p in range(PHOTOS) if np.array_equal(photos[p], x.pictures[0].pixels))
            for x in (query, target)
        ]
        assert sorted(own) == [0, 1]


def test_whole_lists_meet_photos_only_beside_photos_with_lists(material, monkeypatch):
    """Otherwise the embedder would learn to see what only the generator should know."""
    monkeypatch.setattr(reading, "_careless", lambda pairs, rng: pairs)
    lengths = {}
    source = ReadingSource(material, 100, 6, 0)
    for step in range(20):
        sides, (rows, numbers) = source.view(step), source._rows(step)
        for side, part in zip(sides, (rows[:6], rows[6:]), strict=True):
            assert {bool(row.pictures) for row in part} == {side.photo}
            for number, row in zip(numbers.tolist(), part, strict=True):
                after = row.tokens[row.bare_length : -1] if row.bare_length else []
                told = dict(parse_attributes(material.tokenizer.decode(after))) if after else {}
                lists = material.pool.words(number % SIZE).lists
                whole = [dict(parse_attributes(x)) for x in lists]
                other = min(len(told.items() - x.items()) for x in whole) if told else 0
                # A twin's lists are not in the pool: one value is another, or worded anew.
                assert other == (number >= SIZE)
                lengths.setdefault(side, set()).add(len(told) / len(whole[0]))
        assert len(source[step].rows.last) == 12
    for one, other in VIEWS:
        whole = [any("list" in x for x in side.told) for side in (one, other)]
        if any(whole):
            bare = [
                side.photo and not listed for side, listed in zip((one, other), whole, strict=True)
            ]
            assert not any(bare)
    assert all(max(lengths[x]) == 1 for x in lengths if x.photo and "list" in x.told)
    assert all(max(lengths[x]) < 0.7 for x in lengths if "list" not in " ".join(x.told))
    assert sum(VIEWS.values()) == pytest.approx(1)


def test_lists_leave_out_and_err_as_a_captioner_does(material, rng):
    """On the average half as often, for a list is written with more care or with less."""
    settings, counts = MarketplaceSettings(), Counter()
    for number in range(SIZE):
        pairs = parse_attributes(material.pool.words(number).lists[0])
        truth = reading._values(pairs)
        for _ in range(40):
            said = reading._careless(pairs, rng)
            assert said
            told = reading._values(said)
            for key, value in truth.items():
                about = ATTRIBUTES[key].salience
                counts[about, "asked"] += 1
                counts[about, "told"] += key in told
                counts["wrong"] += key in told and told[key] != value
                assert key not in told or told[key] in (value, *allowed(key, truth))
            # What is true stands in the words that it had.
            assert {(k, x) for k, x in said if told[k] == truth[k]} <= set(pairs)
    for about in ("obvious", "middle", "fine"):
        wanted = (1 + getattr(settings, f"mention_{about}")) / 2
        assert counts[about, "told"] / counts[about, "asked"] == pytest.approx(wanted, abs=0.02)
    told = sum(counts[x, "told"] for x in ("obvious", "middle", "fine"))
    assert 0.5 < counts["wrong"] / told / (settings.oracle_errors / 2) < 1.2


def test_the_tower_is_asked_for_what_can_be_seen(material):
    source = TowerSource(material, 10, 5, 0)
    batch, again = source[3], TowerSource(material, 10, 5, 0)[3]
    np.testing.assert_array_equal(batch.values, again.values)
    np.testing.assert_array_equal(batch.rows.patches, again.rows.patches)
    assert batch.rows.tokens.shape == (5, 36)
    lists = [material.pool.words(n).lists[0] for n in range(3)]
    for text, values in zip(lists, values_seen(material.pool.seed, [0, 1, 2]), strict=True):
        told = {key: canonical(key, word) for key, word in parse_attributes(text)}
        shown = {
            key: ATTRIBUTES[key].values[value]
            for key, value in zip(VISIBLE, values, strict=True)
            if value >= 0
        }
        assert told == shown


def test_the_probe_and_the_tower_learn_and_nothing_else(material):
    sizes = Sizes(vision_depth=1, vision_dim=32, hidden_dim=64, layers=1, intermediate_dim=64)
    built = architecture("generator", sizes, material.tokenizer)
    frozen, start = trainable(built.init(0), sizes.hidden_dim, 0)
    assert {name.partition("/")[0] for name in start} == {"visual_tower", "probe"}
    optimizer = make_muon(start, 30, muon_rate=1.5e-2, adam_rate=2e-3)
    step = make_tower_step(built, optimizer)
    state, losses = initial_state(start, optimizer), []
    batch = TowerSource(material, 1, 16, 0)[0]
    for _ in range(30):
        state, metrics = step(frozen, state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    # As many values are possible as chance knows of, and one batch can be learned by heart.
    assert losses[0] == pytest.approx(np.log(KNOWN.sum(1)).mean(), rel=0.1)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill_and_ends_with_the_same_weights(pool, tmp_path):
    """Killed in the middle of the generator's training, against a run that was left alone."""
    tiny = ["--sizes.vision-depth=1", "--sizes.vision-dim=32", "--sizes.hidden-dim=64"]
    tiny += ["--sizes.layers=2", "--sizes.intermediate-dim=64", "--vocab-size=600"]
    tiny += ["--samples", str(SIZE), "--seed=3", "--workers=1", "--save-every=4", "--examined=100"]
    tiny += ["--tower-steps=6", "--tower-batch=8", "--generator-steps=12", "--generator-batch=8"]
    tiny += ["--embedder-steps=8", "--reading-steps=8"]
    command = [sys.executable, "-m", "experiments.studies.pretrain_demo", *tiny]
    outs = [tmp_path / "whole", tmp_path / "killed"]
    for out in outs:
        shutil.copytree(pool.folder.parent, out / "pool")
    subprocess.run([*command, "--embedder-batch=8", "--out", outs[0]], check=True)
    killed = subprocess.Popen([*command, "--embedder-batch=8", "--out", outs[1]])
    metrics = outs[1] / "train-generator" / "checkpoints"
    while not any(metrics.glob("4*")) and killed.poll() is None:
        pass
    killed.kill()
    killed.wait()
    subprocess.run([*command, "--embedder-batch=8", "--out", outs[1]], check=True)
    for name in ("generator", "embedder"):
        one, other = (load_model(out / name)[1] for out in outs)
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key], err_msg=f"{name} {key}")
    report = json.loads((outs[1] / "report.json").read_text())
    assert report["generator"]["loss"]["generator"][-1][0] == 12
    assert set(report["generator"]["examination"]) >= {"type", "neckline", "pattern"}
    recall = report["embedder"]["examination"]
    for task in ("title_to_photo", "photo_to_title", "list_to_list", "title_to_list"):
        assert 0 <= recall[f"{task}.R@1"] <= recall[f"{task}.R@5"] <= 1
    assert report["embedder"]["loss"]["reading"][-1][0] == 8
    assert "| neckline | " in (outs[1] / "generator" / "README.md").read_text()
