"""Batches: who meets whom, and that any step can be replayed."""

import itertools

import jax
import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, InputDropout, TextBudget
from afmrl_jax.data.attributes.bm25_terms import Bm25Vocabulary
from afmrl_jax.data.attributes.lists import Lists
from afmrl_jax.data.batching.augmentation import drop_words
from afmrl_jax.data.batching.collate import bucket_length
from afmrl_jax.data.batching.images import erase_patches
from afmrl_jax.data.sources.contrastive import ContrastiveSource
from afmrl_jax.data.sources.distill import DistillSource
from afmrl_jax.data.sources.loader import iterate
from afmrl_jax.data.sources.prompts import PromptCollator, PromptSource
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.data.sources.sampler import PairSampler, epoch_indices
from afmrl_jax.errors import CatalogueError


@pytest.fixture
def builder(badge_listings, tokenizer):
    return RowBuilder.of(badge_listings, tokenizer, ImageConfig(), TextBudget())


PRODUCTS = [f"p{n // 3}" for n in range(600)]
FAMILIES = [f"f{n // 12}" for n in range(600)]


def sampler(**options):
    settings = {"batch_size": 16, "sibling_share": 0.5, "seed": 0} | options
    return PairSampler(PRODUCTS, FAMILIES, **settings)


@pytest.mark.parametrize("step", range(20))
def test_a_batch_holds_no_product_twice_and_pairs_two_listings_of_each(step):
    queries, candidates, products = sampler().draw(step)
    assert len(set(products.tolist())) == 16
    assert (queries != candidates).all()
    for q, c in zip(queries, candidates, strict=True):
        assert PRODUCTS[q] == PRODUCTS[c]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_siblings_have_their_share(share):
    met = []
    for step in range(50):
        families = [FAMILIES[q] for q in sampler(sibling_share=share).draw(step)[0]]
        met.append(np.mean([families.count(f) > 1 for f in families]))
    # Products drawn at random meet a sibling now and then.
    assert share - 0.01 <= np.mean(met)
    assert np.mean(met) < share + 0.5


def test_a_small_catalogue_gives_smaller_batches():
    assert sampler(batch_size=500).batch_size == 200


def test_products_with_a_single_listing_cannot_be_trained_on():
    with pytest.raises(CatalogueError, match="two products with two listings"):
        PairSampler(["a", "b"], [None, None], batch_size=2, sibling_share=0, seed=0)


def test_an_epoch_holds_every_listing_once_and_batches_run_across_its_end():
    drawn = np.concatenate([epoch_indices(10, 4, step, seed=1) for step in range(5)])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10].tolist() != drawn[10:].tolist()


def contrastive(builder, **options):
    texts = {x.listing_id: "shape: round; colour: red; finish: matt" for x in builder.listings}
    vocabulary = Bm25Vocabulary.fit(list(texts.values()))
    settings = {
        "steps": 6,
        "batch_size": 8,
        "sibling_share": 0.5,
        "seed": 3,
        "attributes_in_input": Lists(texts),
        "attributes_for_terms": texts,
        "vocabulary": vocabulary,
        "dropout": InputDropout(0.5, 0.2, title=0.2, picture=0.2),
    }
    return ContrastiveSource(builder, **(settings | options))


def flatten(batch):
    return jax.tree.leaves(batch)


def test_iterating_gives_the_batches_of_the_source(builder):
    source = contrastive(builder)
    for step, batch in enumerate(itertools.islice(iterate(source), 6)):
        for one, two in zip(flatten(batch), flatten(source[step]), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_begins_where_another_was_left(builder, workers):
    iterator = iterate(contrastive(builder))
    next(iterator), next(iterator)
    expected = flatten(next(iterator))
    again = iterate(contrastive(builder), begin=2, workers=workers)
    for one, two in zip(flatten(next(again)), expected, strict=True):
        np.testing.assert_array_equal(one, two)


def test_dropout_hides_parts_but_never_all(builder):
    pads, texts = 0, 0
    for step in range(6):
        rows = contrastive(builder)[step].rows
        has_picture = (rows.tokens == builder.tokenizer.image_pad_id).any(1)
        pads += (~has_picture).sum()
        texts += len(rows.tokens)
        assert (rows.token_mask.sum(1) > 2).all()
    assert 0 < pads < texts


def test_dropout_of_words_keeps_one_and_the_order():
    rng = np.random.default_rng(0)
    words = ["red", "round", "badge", "with", "a", "pin"]
    for rate in (0.0, 0.5, 0.99):
        for _ in range(20):
            kept = drop_words(" ".join(words), rng, rate).split()
            assert kept
            assert [w for w in words if w in kept] == kept
    assert drop_words(" ".join(words), rng, 0.0).split() == words


def test_erased_patches_go_by_whole_visual_tokens(builder):
    picture, merged = builder.pictures.at(0, 0), builder.image.merge_size**2
    erased = erase_patches(picture, np.random.default_rng(0), 0.5, builder.image)
    groups = erased.kept.reshape(-1, merged)
    assert (groups.all(1) | ~groups.any(1)).all()
    assert 0 < groups.any(1).sum() < len(groups)
    assert erased.pixels is picture.pixels
    assert picture.kept is None, "the stored picture must stay as it was"


def distill(builder, **options):
    texts = [f"shape: {x.product_id}; finish: matt" for x in builder.listings]
    settings = {"steps": 4, "batch_size": 6, "seed": 0} | options
    return DistillSource(builder, texts, **settings), texts


def test_distillation_targets_are_the_oracles_list_and_nothing_else(builder):
    source, texts = distill(builder)
    batch = source[1]
    for row, place in enumerate(epoch_indices(len(texts), 3, 1, 0)):
        target = batch.targets[row][batch.weights[row] > 0].tolist()
        assert target[-1] == builder.tokenizer.eos_id
        assert builder.tokenizer.decode(target) == texts[place]
        prompt = builder.prompt(int(place))
        assert batch.prompt_last[row] == len(prompt.tokens) - 1


def test_swapped_words_are_still_there_to_be_copied(builder, badge_listings):
    texts = [f"shape: {x.title}" for x in badge_listings]
    source = DistillSource(builder, texts, steps=1, batch_size=8, seed=0, swap_share=1.0)
    batch, decode, changed = source[0], builder.tokenizer.decode, 0
    for row, (target, weight) in enumerate(zip(batch.targets, batch.weights, strict=True)):
        value = decode(target[weight > 0].tolist()).removeprefix("shape: ")
        prompt = batch.rows.tokens[row][: batch.prompt_last[row] + 1].tolist()
        assert value.strip() in decode(prompt)
        changed += f"shape: {value}" not in [x.lower() for x in texts]
    assert changed


def test_second_half_holds_other_listings_of_the_same_products(builder):
    source, texts = distill(builder)
    batch = source[2]
    written = [
        builder.tokenizer.decode(t[w > 0].tolist())
        for t, w in zip(batch.targets, batch.weights, strict=True)
    ]
    assert written[:3] == written[3:]  # The oracle writes by product here.
    assert (batch.rows.tokens[:3] != batch.rows.tokens[3:]).any()
    assert len(batch.products) == 3
    assert set(written) <= set(texts)


def test_values_weigh_more_than_the_rest(builder):
    source, _ = distill(builder, structure_weight=0.25)
    batch = source[0]
    tokens = batch.targets[0][batch.weights[0] == 1.0].tolist()
    text = builder.tokenizer.decode(tokens)
    assert ":" not in text
    assert ";" not in text
    assert text.endswith("matt")
    assert set(np.unique(batch.weights)) == {0.0, 0.25, 1.0}


def test_prompts_name_their_listings(builder):
    queries = np.array([4, 9, 17])
    batch = PromptSource(PromptCollator(builder, 48), queries, steps=2, batch_size=2, seed=0)[0]
    assert set(batch.queries.tolist()) <= {4, 9, 17}
    prompt = builder.prompt(int(batch.queries[0]))
    assert batch.rows.tokens[0, : len(prompt.tokens)].tolist() == prompt.tokens


def test_a_row_beyond_the_largest_bucket_is_refused():
    budget = TextBudget(buckets=(8, 16))
    assert bucket_length(9, budget) == 16
    with pytest.raises(CatalogueError, match="add a bucket"):
        bucket_length(17, budget)
