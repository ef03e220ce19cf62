"""Batches by category and by duplicate group, and the same batch on any number of processes."""

import hashlib
import itertools
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, InputDropout, TextBudget
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.batching import collate as batches
from afmrl_jax.data.batching.host_share import HostShare
from afmrl_jax.data.catalogue.splits import linked
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.loader import iterate
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.data.sources.sampler import PairSampler
from afmrl_jax.errors import CatalogueError, ConfigError

# 200 products of three listings, four products a family, five categories of unequal size.
PRODUCTS = [f"p{n // 3}" for n in range(600)]
FAMILIES = [f"f{n // 12}" for n in range(600)]
CATEGORIES = [None if n < 60 else ("a" if n < 360 else f"c{n % 3 + n // 300}") for n in range(600)]
CATEGORIES = [CATEGORIES[n // 3 * 3] for n in range(600)]
# Products 0 to 39 in twenty groups of two ids.
GROUPS = [f"g{n // 6}" if n < 120 else None for n in range(600)]


def sampler(**options):
    settings = {"batch_size": 32, "sibling_share": 0.0, "seed": 0, "categories": CATEGORIES}
    return PairSampler(PRODUCTS, FAMILIES, **(settings | {"duplicate_groups": GROUPS} | options))


def test_what_is_off_leaves_the_batches_as_they_were():
    """The digest was taken before there were categories, groups and hard negatives."""
    families = [f"f{n // 12}" if n % 5 else None for n in range(600)]
    digest = hashlib.sha256()
    for share in (0.0, 0.3, 1.0):
        plain = PairSampler(PRODUCTS, families, batch_size=24, sibling_share=share, seed=7)
        for step in range(20):
            for drawn in plain.draw(step):
                digest.update(np.asarray(drawn, np.int64).tobytes())
    assert digest.hexdigest()[:16] == "60ca34f4d25ab035"


@pytest.mark.parametrize(
    "shares",
    [
        {"category_share": 1.0, "category_batch": 8},
        {"category_share": 0.5, "category_batch": 5, "sibling_share": 0.5},
        {"duplicate_share": 0.25, "category_share": 0.5, "sibling_share": 0.25},
        {"duplicate_share": 1.0},
    ],
)
def test_any_composition_fills_the_batch_with_different_products(shares):
    for step in range(20):
        queries, candidates, _ = sampler(**shares).draw(step)
        ids = [PRODUCTS[q] for q in queries]
        assert len(ids) == len(set(ids)) == 32
        assert (queries != candidates).all()
        assert ids == [PRODUCTS[c] for c in candidates]


def test_a_whole_batch_is_cut_in_sub_batches_of_one_category():
    for step in range(30):
        queries, _, _ = sampler(category_share=1.0, category_batch=8).draw(step)
        drawn = [CATEGORIES[q] for q in queries]
        # A category's last sub-batch may be short, and what is left over is drawn at random.
        runs = [(c, len(list(g))) for c, g in itertools.groupby(drawn)]
        assert sum(size for c, size in runs if c is not None and size >= 2) >= 30
        assert None not in drawn[:24]


def test_categories_are_drawn_by_their_products():
    met = Counter()
    for step in range(200):
        queries, _, _ = sampler(category_share=1.0, category_batch=4).draw(step)
        met.update(CATEGORIES[q] for q in queries)
    products = Counter(CATEGORIES[::3])
    shares = {c: met[c] / products[c] for c in products if c is not None}
    assert max(shares.values()) < 1.25 * min(shares.values())


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_duplicates_have_their_share(share):
    met = []
    for step in range(100):
        queries, _, _ = sampler(duplicate_share=share).draw(step)
        groups = Counter(GROUPS[q] for q in queries if GROUPS[q])
        met.append(sum(n for n in groups.values() if n > 1) / 32)
    assert share <= np.mean(met) < share + 0.1


def test_product_ids_of_a_group_have_one_number_unless_told_otherwise():
    one, two = sampler(), sampler(merge_duplicates=False)
    for group in range(20):
        members = [n for n, g in enumerate(GROUPS) if g == f"g{group}"]
        assert len({*one.identity[members]}) == 1
        assert len({*two.identity[members]}) == 2
    assert len({*one.identity.tolist()}) == 180
    assert len({*two.identity.tolist()}) == 200
    _, _, products = sampler(duplicate_share=1.0).draw(0)
    assert len({*products.tolist()}) <= 30


def test_groups_link_through_shared_products():
    found = linked(["b", "a", "c", "c", "d"], ["x", "x", None, "x", None])
    assert found == {"a": "a", "b": "a", "c": "a", "d": "d"}


@pytest.mark.parametrize(
    ("options", "column"),
    [
        ({"category_share": 0.5, "categories": None}, "`category`"),
        ({"duplicate_share": 0.5, "duplicate_groups": None}, "`duplicate_group`"),
    ],
)
def test_a_share_without_its_column_is_refused(options, column):
    with pytest.raises(CatalogueError, match=column):
        sampler(**options)


@pytest.fixture
def builder(badge_listings, tokenizer):
    grouped = [
        replace(x, duplicate_group="twins") if x.product_id.endswith("-red") else x
        for x in badge_listings
    ]
    return RowBuilder.of(grouped, tokenizer, ImageConfig(), TextBudget())


def source(builder, **options):
    texts = {x.listing_id: f"shape: {x.product_id}" for x in builder.listings}
    settings = {
        "steps": 4,
        "batch_size": 8,
        "sibling_share": 0.0,
        "category_share": 0.5,
        "category_batch": 2,
        "duplicate_share": 0.25,
        "seed": 3,
        "attributes_in_input": Lists(texts),
        "attributes_for_terms": texts,
        "vocabulary": Bm25Vocabulary.fit(list(texts.values())),
        "dropout": InputDropout(),
    }
    return ContrastiveSource(builder, **(settings | options))


def flat(batch):
    return jax.tree.leaves(batch)


@pytest.mark.parametrize("workers", [0, 2, 4])
def test_batches_do_not_depend_on_the_number_of_workers(builder, workers):
    expected = source(builder)
    read = list(iterate(source(builder), workers=workers))
    assert len(read) == 4
    for step, batch in enumerate(read):
        for one, two in zip(flat(batch), flat(expected[step]), strict=True):
            np.testing.assert_array_equal(one, two)


def shares(hosts):
    """Four parts among some processes."""
    size = 4 // hosts
    return [HostShare(4, tuple(range(n * size, (n + 1) * size))) for n in range(hosts)]


@pytest.mark.parametrize("chunk_tokens", [None, 64])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_processes_together_decode_the_batch_of_one(builder, hosts, chunk_tokens, monkeypatch):
    """Each has all text, the pixels of its own devices, and decodes no other picture."""
    whole = source(builder, chunk_tokens=chunk_tokens, shares=4)[0]
    parts, counts = [], []
    for share in shares(hosts):
        decoded = []
        plain = batches.patchify
        with monkeypatch.context() as patch:
            patch.setattr(
                batches, "patchify", lambda *x, p=plain, d=decoded: [d.append(1), p(*x)][1]
            )
            own = RowBuilder.of(
                builder.listings, builder.tokenizer, builder.image, builder.text, share
            )
            parts.append(source(own, chunk_tokens=chunk_tokens, shares=4)[0])
        counts.append(len(decoded))
    if hosts > 1:
        assert min(counts) > 0
        assert sum(counts) <= len(whole.prompt_last)
    for n, share in enumerate(shares(hosts)):
        for (way, one), (_, two) in zip(leaves(whole), leaves(parts[n]), strict=True):
            if "patches" in way:
                # The axis that the devices share: bins, or the second one of chunks.
                axis = 0 if chunk_tokens is None else 1
                own = share.needs(one.shape[axis])
                one, two = (np.compress(own, x, axis) for x in (one, two))
            np.testing.assert_array_equal(one, two, err_msg=way)


def leaves(batch):
    """Arrays of a batch by the name of their place."""
    found = jax.tree_util.tree_flatten_with_path(batch)[0]
    return [(jax.tree_util.keystr(way), x) for way, x in found]


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pictures_are_left_out_and_counted(builder, workers, capfd):
    """Header and size are in order, but the picture is cut off."""
    cut = [
        replace(x, image=x.read_image_bytes()[:150]) if n % 5 == 0 else x
        for n, x in enumerate(builder.listings)
    ]
    with pytest.raises(CatalogueError, match=r"listing .*cut off.*bad-pictures skip"):
        RowBuilder.of(cut, builder.tokenizer, builder.image, builder.text).picture(0)
    image = replace(builder.image, bad_pictures="skip")
    skipping = RowBuilder.of(cut, builder.tokenizer, image, builder.text)
    counts = []
    for step, batch in enumerate(iterate(source(skipping), workers=workers)):
        drawn = np.concatenate(source(skipping).draw(step))
        assert batch.bad_pictures == sum(n % 5 == 0 for n in drawn)
        counts.append(batch.bad_pictures)
    assert sum(counts) > 0
    assert "left out: the picture of listing" in capfd.readouterr().err


def test_a_process_reads_the_same_with_workers(builder):
    share = HostShare(2, (1,))
    own = RowBuilder.of(builder.listings, builder.tokenizer, builder.image, builder.text, share)
    plain = source(own)
    for step, batch in enumerate(iterate(source(own), workers=2)):
        for one, two in zip(flat(batch), flat(plain[step]), strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_picture_is_named_by_the_process_that_decodes_it(builder):
    cut = [replace(x, image=x.read_image_bytes()[:150]) for x in builder.listings]
    share = HostShare(2, (1,))
    own = RowBuilder.of(cut, builder.tokenizer, builder.image, builder.text, share)
    rows = [own.embedder(n, None) for n in range(4)]
    with pytest.raises(CatalogueError, match=r"listing .*cut off"):
        own.batch(rows)


@pytest.mark.parametrize("share", [(2, (2,)), (2, ()), (4, (-1,))])
def test_parts_that_do_not_fit_are_refused(share):
    with pytest.raises(ConfigError, match="parts"):
        HostShare(*share)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_batch_is_read_from_the_end_on_and_another_iterator_goes_on(builder, workers):
    expected, found = source(builder), []
    for end in (1, 3, 4):
        iterator = iterate(source(builder), workers=workers, begin=len(found), end=end)
        found += [next(iterator) for _ in range(end - len(found))]
    with pytest.raises(StopIteration):
        next(iterator)
    for step, batch in enumerate(found):
        for one, two in zip(flat(batch), flat(expected[step]), strict=True):
            np.testing.assert_array_equal(one, two)
