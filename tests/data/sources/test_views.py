"""What the sides of a batch show: homogeneous, in their shares, and nothing of the other side."""

import dataclasses
import hashlib
from collections import Counter

import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, InputDropout, TextBudget, ViewShares
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.batching.chunk_arrays import Chunks
from afmrl_jax.data.batching.row_packing import PackedRows
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.distill import DistillSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.data.sources.views import PERIOD, view_of
from afmrl_jax.errors import ConfigError

MIXED = ViewShares.mixed()
NOTHING = InputDropout(attributes=0, whole_list=0, title=0, picture=0, words=0, patches=0)
WRITERS = {"both": "seen: all", "image": "seen: photo", "text": "seen: words"}


@pytest.fixture
def builder(badge_listings, tokenizer):
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), TextBudget())


def source(builder, *, views=MIXED, dropout=NOTHING, **options):
    ids = [x.listing_id for x in builder.listings]
    lists = Lists(**{shown: dict.fromkeys(ids, text) for shown, text in WRITERS.items()})
    settings = {"steps": 40, "batch_size": 6, "sibling_share": 0.0, "seed": 3}
    settings |= {"attributes_in_input": lists, "attributes_for_terms": None, "vocabulary": None}
    return ContrastiveSource(builder, dropout=dropout, views=views, **(settings | options))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_period_holds_the_shares(seed):
    for begin in range(0, 200, PERIOD):
        met = Counter(view_of(begin + n, MIXED, seed) for n in range(PERIOD))
        assert met == {sides: round(PERIOD * x) for sides, x in MIXED.by_sides.items()}


def test_shares_that_divide_no_period_hold_in_the_mean():
    views = ViewShares(text_image=0.013, image_text=0.52)
    met = Counter(view_of(step, views, 0) for step in range(4000))
    assert met["text", "image"] == pytest.approx(52, abs=20)
    assert met["image", "text"] == pytest.approx(2080, abs=20)


def test_views_are_mixed_in_time_and_differ_by_seed():
    drawn = [[view_of(step, MIXED, seed) for step in range(3 * PERIOD)] for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    assert drawn[0][:PERIOD] != drawn[0][PERIOD : 2 * PERIOD]


def test_without_shares_both_sides_are_whole():
    assert {view_of(step, ViewShares(), 0) for step in range(50)} == {("both", "both")}


@pytest.mark.parametrize("shares", [{"image_both": 0.6, "text_both": 0.5}, {"image_text": -0.1}])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ConfigError, match="views"):
        ViewShares(**shares)


def rows_of(batch):
    """(tokens before the attributes, those of the attributes) of each row of a batch."""
    if isinstance(batch.rows, PackedRows):
        flat, segment = batch.rows.bins.tokens.reshape(-1), batch.rows.segment.reshape(-1)
        for last, bare in zip(batch.rows.last, batch.rows.bare_last, strict=True):
            first = last
            while first and segment[first - 1] == segment[last]:
                first -= 1
            yield flat[first : bare + 1].tolist(), flat[bare + 1 : last + 1].tolist()
        return
    rows = zip(batch.rows.tokens, batch.rows.token_mask, batch.prompt_last, strict=True)
    for tokens, mask, bare in rows:
        yield tokens[: bare + 1].tolist(), tokens[mask][bare + 1 :].tolist()


def shown(builder, row):
    """What a row shows, and what its list says."""
    bare, told = row
    parts = builder.tokenizer.image_pad_id in bare, bool(builder.tokenizer.decode(bare).strip())
    names = {(True, True): "both", (True, False): "image", (False, True): "text"}
    return names[parts], builder.tokenizer.decode(told).strip()


@pytest.mark.parametrize("packed", [False, True])
def test_a_side_shows_one_thing_and_reads_what_was_written_from_it(builder, packed):
    found = source(builder, packed=packed)
    for step in range(PERIOD):
        rows = [shown(builder, row) for row in rows_of(found[step])]
        sides = found.view(step)
        assert found[step].view == "-".join(sides)
        assert set(rows[:6]) == {(sides[0], WRITERS[sides[0]])}
        assert set(rows[6:]) == {(sides[1], WRITERS[sides[1]])}


def test_dropout_of_titles_and_pictures_does_not_come_on_top(builder):
    found = source(builder, dropout=dataclasses.replace(NOTHING, title=0.4, picture=0.4))
    for step in range(PERIOD):
        names = [shown(builder, row)[0] for row in rows_of(found[step])]
        assert [set(names[:6]), set(names[6:])] == [{x} for x in found.view(step)]


def test_a_lone_picture_without_a_list_of_its_own_reads_none(builder):
    lists = Lists({x.listing_id: "seen: all" for x in builder.listings})
    found = source(builder, attributes_in_input=lists)
    for step in range(PERIOD):
        sides = np.repeat(found.view(step), 6)
        for side, (_, told) in zip(sides, rows_of(found[step]), strict=True):
            assert bool(told) == (side == "both")


def test_what_a_side_does_not_show_cannot_reach_it(builder):
    """Other titles leave the rows of lone pictures as they are, other pictures those of titles."""
    renamed = [dataclasses.replace(x, title="x" + x.title[::-1]) for x in builder.listings]
    images = [x.image for x in builder.listings]
    repainted = [
        dataclasses.replace(x, image=other)
        for x, other in zip(builder.listings, images[7:] + images[:7], strict=True)
    ]
    for listings, kept in ((renamed, "image"), (repainted, "text")):
        other = RowBuilder.of(listings, builder.tokenizer, builder.image, builder.text)
        one, two = source(builder), source(other)
        for step in range(PERIOD):
            places = np.flatnonzero(np.repeat(one.view(step), 6) == kept)
            pairs = [list(rows_of(x[step])) for x in (one, two)]
            for place in places:
                assert pairs[0][place] == pairs[1][place]


def test_other_pictures_do_reach_a_side_that_shows_them(builder):
    step = next(n for n in range(PERIOD) if source(builder).view(n) == ("image", "image"))
    patches = source(builder)[step].rows.patches
    swapped = [
        dataclasses.replace(x, image=builder.listings[n - 7].image)
        for n, x in enumerate(builder.listings)
    ]
    other = RowBuilder.of(swapped, builder.tokenizer, builder.image, builder.text)
    assert (source(other)[step].rows.patches != patches).any()


def test_few_shapes_serve_all_views(builder):
    found = source(builder, packed=True, batch_size=16)
    shapes = {
        (x.rows.segment.shape, x.rows.bins.patches.shape) for x in (found[n] for n in range(40))
    }
    assert len(shapes) <= 4


def test_one_program_of_chunks_serves_all_views(builder):
    found = source(builder, chunk_tokens=200, batch_size=16)
    batches = [found[n].rows for n in range(PERIOD)]
    assert all(isinstance(x, Chunks) for x in batches)
    assert len({tuple(y.tokens.shape for y in x.texts) for x in batches}) == 1
    assert len({tuple(y.patches.shape for y in x.pictures) for x in batches}) == 1


def sampled(builder, count=3):
    ids = [x.listing_id for x in builder.listings]
    samples = {"both": {x: [f"seen: sample{n}" for n in range(count)] for x in ids}}
    return Lists(dict.fromkeys(ids, "seen: all"), samples=samples)


def test_sampled_lists_and_the_greedy_one_are_read_alike(builder):
    options = {"views": ViewShares(), "attributes_in_input": sampled(builder), "batch_size": 12}
    one, two = (source(builder, **options) for _ in range(2))
    met = Counter()
    for step in range(20):
        told = [shown(builder, row)[1] for row in rows_of(one[step])]
        assert told == [shown(builder, row)[1] for row in rows_of(two[step])]
        met.update(told)
    assert met.keys() == {"seen: all", "seen: sample0", "seen: sample1", "seen: sample2"}
    assert max(met.values()) < 1.5 * min(met.values())


def digest(found, steps):
    digest = hashlib.sha256()
    for step in range(steps):
        digest.update(np.ascontiguousarray(found[step].rows.tokens).tobytes())
    return digest.hexdigest()[:16]


def test_what_is_off_leaves_the_rows_as_they_were(builder):
    """The digests were taken before there were views, samples and dropout in distillation."""
    texts = {x.listing_id: f"shape: {x.product_id}; finish: matt" for x in builder.listings}
    contrastive = source(
        builder,
        views=ViewShares(),
        dropout=InputDropout(0.5, 0.2, title=0.2, picture=0.2),
        attributes_in_input=Lists(texts),
        batch_size=8,
        sibling_share=0.5,
    )
    assert digest(contrastive, 6) == "b1cfef9f98347c65"
    options = {"steps": 6, "batch_size": 8, "seed": 3, "swap_share": 0.5}
    distill = DistillSource(builder, list(texts.values()), **options)
    assert digest(distill, 6) == "35cd39254db1b793"


def prompts(found, builder, steps):
    """What the prompts show, and whether the words of the list stand in the title."""
    for step in range(steps):
        batch = found[step]
        for n, end in enumerate(batch.prompt_last):
            bare = batch.rows.tokens[n, : end + 1].tolist()
            wanted = batch.targets[n][batch.weights[n] > 0].tolist()
            name = shown(builder, (bare, []))[0]
            yield name, builder.tokenizer.decode(bare), builder.tokenizer.decode(wanted)


def test_distillation_hides_titles_and_pictures_in_their_shares(builder):
    texts = [f"shape: {x.product_id}" for x in builder.listings]
    options = {"steps": 60, "batch_size": 8, "seed": 0, "swap_share": 1.0}
    found = DistillSource(builder, texts, title_dropout=0.3, picture_dropout=0.2, **options)
    drawn = list(prompts(found, builder, 60))
    met = Counter(name for name, _, _ in drawn)
    assert met["image"] / len(drawn) == pytest.approx(0.3, abs=0.06)
    assert met["text"] / len(drawn) == pytest.approx(0.2, abs=0.06)
    # Words are exchanged only where the title shows which.
    assert all(wanted in texts for name, _, wanted in drawn if name == "image")
    assert not all(wanted in texts for name, _, wanted in drawn if name == "both")
