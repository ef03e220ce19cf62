"""What RAR is rewarded with, and the judge of its held-out queries."""

import dataclasses

import jax
import numpy as np
import pytest

from afmrl_jax.config import ImageConfig, RarConfig, TextBudget
from afmrl_jax.data.batching.tokenizer import BpeTokenizer
from afmrl_jax.data.sources.row_builder import RowBuilder
from afmrl_jax.errors import CatalogueError
from afmrl_jax.models.architecture import Architecture
from afmrl_jax.models.generation import Generation
from afmrl_jax.objectives.rewards import Outcome, Reward, find_reward
from afmrl_jax.parallel.mesh import make_mesh
from afmrl_jax.parallel.sharding import place_batch
from afmrl_jax.retrieval.encoder import Encoder
from afmrl_jax.testing import tiny_config
from afmrl_jax.training.rar.environment import RarEnvironment
from afmrl_jax.training.rar.held_out import HeldOutEvaluator, cluster_error
from afmrl_jax.training.rar.query_parts import divide_queries
from afmrl_jax.training.rar.rollout import Rollout, WrittenLists

SETTINGS = RarConfig(queries=2, group_size=2, evaluation_samples=2)


MALFORMED = np.array([[False, False], [False, True]])


@pytest.fixture
def outcome():
    ranks = np.array([[1, 4], [2, 1]], np.int32)
    return Outcome(
        rank=ranks,
        ranks=ranks[..., None],
        positives=np.ones(2, np.int32),
        margin=np.array([[0.5, -0.25], [0.0, 0.75]], np.float32),
        tokens=np.full((2, 2), 8, np.int32),
        attributes=np.ones((2, 2), np.int32),
        budget=16,
        k=3,
    )


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("recall", [[1.0, 0.0], [1.0, -0.1]]),
        ("reciprocal_rank", [[1.0, 0.25], [0.5, -0.1]]),
        ("ndcg", [[1.0, 0.0], [1 / np.log2(3), -0.1]]),
        ("length_aware", [[0.95, -0.05], [0.95, -0.1]]),
        ("margin", [[0.5, -0.25], [0.0, -0.1]]),
    ],
)
def test_samples_are_rewarded_as_the_settings_say(outcome, reward, expected):
    found = Rollout.of(outcome, MALFORMED, [""] * 4, find_reward(reward, SETTINGS), -0.1)
    np.testing.assert_allclose(found.rewards, expected, rtol=1e-6)
    # Recall is logged under every reward, and a malformed list finds nothing.
    np.testing.assert_array_equal(found.recall, [[1, 0], [1, 0]])


def test_the_error_of_a_mean_over_groups():
    values = np.array([0.0, 1.0, 1.0, 3.0, 2.0, 5.0])
    each = cluster_error(values, np.arange(6))
    assert each == pytest.approx(values.std(ddof=1) / np.sqrt(6))
    # Three pairs: the definition, written out.
    sums = [(0 + 1) - 2 * 2, (1 + 3) - 2 * 2, (2 + 5) - 2 * 2]
    expected = np.sqrt(sum(s * s for s in sums) * 3 / 2) / 6
    assert cluster_error(values, np.repeat([0, 1, 2], 2)) == pytest.approx(expected)
    assert np.isnan(cluster_error(values, np.zeros(6)))


TEXTS = {
    "bare": TextBudget(),
    "packed": TextBudget(),
    "chat": TextBudget(buckets=(200, 300, 400), layout="chat", max_attribute_tokens=12),
    # Of the embedder, beside a generator of other patches, chats and tokens.
    "apart": TextBudget(buckets=(200, 300, 400), layout="qwen3", max_attribute_tokens=12),
}


@pytest.fixture(scope="module", params=["bare", "packed", "chat", "apart"])
def environment(request, badge_listings, tokenizer):
    """The badges' environment, and a G."""
    asked = set(sorted({x.product_id for x in badge_listings})[:8])
    listings = [
        dataclasses.replace(x, split="reward" if x.product_id in asked else "train")
        for x in badge_listings
    ]
    builder = RowBuilder.of(listings, tokenizer, ImageConfig(), TEXTS[request.param])
    models = []
    for family in ("qwen2_vl", "qwen2_5_vl"):
        size = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
        architecture = Architecture.of(tiny_config(family, **size))
        models.append((architecture, architecture.init(0)))
    encoder = Encoder(*models[0], batch_size=8)
    packed, writer = request.param in ("packed", "apart"), None
    if request.param == "apart":
        other = BpeTokenizer.train([x.title for x in badge_listings[::2]], 300)
        image = ImageConfig(patch_size=7, max_pixels=56 * 56)
        writer = RowBuilder.of(listings, other, image, TEXTS["chat"])
        assert other.encode("colour: red") != tokenizer.encode("colour: red")
    environment = RarEnvironment(builder, encoder, {}, SETTINGS, 0, packed=packed, writer=writer)
    return environment, *models[1]


@pytest.mark.parametrize("environment", ["bare"], indirect=True)
def test_held_out_queries_share_no_family_with_the_others(environment):
    env = environment[0]
    held = set(env.families[env.held_out_queries].tolist())
    assert held
    assert not held & set(env.families[env.training_queries].tolist())


def test_a_catalogue_may_say_what_is_held_out(badge_listings, tokenizer):
    products = sorted({x.product_id for x in badge_listings})[:9]
    part_of = {x: ("learn", "choose", "report")[n % 3] for n, x in enumerate(products)}
    listings = [
        dataclasses.replace(x, split="reward", part=part_of[x.product_id])
        if x.product_id in part_of
        else dataclasses.replace(x, split="train")
        for x in badge_listings
    ]
    builder = RowBuilder.of(listings, tokenizer, ImageConfig(), TextBudget())
    size = {"vocab_size": tokenizer.vocab_size, "image_token_id": tokenizer.image_pad_id}
    architecture = Architecture.of(tiny_config("qwen2_vl", **size))
    encoder = Encoder(architecture, architecture.init(0), batch_size=8)
    env = RarEnvironment(builder, encoder, {}, SETTINGS, 0)
    for queries, part in ((env.training_queries, "learn"), (env.held_out_queries, "choose")):
        assert {listings[i].part for i in queries} == {part}
        assert {listings[i].product_id for i in queries} == {
            x for x, y in part_of.items() if y == part
        }


def test_families_are_divided_in_three(badge_listings):
    asked = [dataclasses.replace(x, split="reward") for x in badge_listings]
    everything = np.arange(len(asked))
    two = divide_queries(asked, everything, SETTINGS, 0)
    settings = dataclasses.replace(SETTINGS, report_share=0.2)
    three = divide_queries(asked, everything, settings, 0)
    # The third part is taken from those that would learn.
    np.testing.assert_array_equal(two.choose, three.choose)
    assert not len(two.report)
    families = [{asked[i].product_id for i in part} for part in three]
    assert [len(x) for x in families] == [15, 9, 6]
    assert len(set.union(*families)) == 30
    few = [n for n, x in enumerate(asked) if x.product_id in sorted(families[0])[:2]]
    with pytest.raises(CatalogueError, match=r"three families or more, found 2.*report-share 0"):
        divide_queries(asked, np.array(few), settings, 0)


@pytest.mark.parametrize("data", [1, 8])
@pytest.mark.parametrize("environment", ["bare"], indirect=True)
def test_gains_of_lists_are_over_no_list(environment, data):
    env = environment[0]
    mesh = make_mesh(data, 1)
    encoder = Encoder.on(mesh, env._encoder.architecture, env._encoder.params, 8)
    env = RarEnvironment(env.builder, encoder, {}, SETTINGS, 0)
    index = np.array(env.training_queries[:8])
    with jax.set_mesh(mesh):
        prompts = place_batch(env.prompts([env.builder.prompt(int(i)) for i in index]), mesh)
    # A list that says nothing is no list, and the greedy list is judged like any other.
    shape = (8, 2)
    texts = ["", "shape: circle"] * 8
    lists = WrittenLists(texts, np.zeros(shape, bool), np.ones(shape, np.int32))
    greedy = WrittenLists(texts[1::2], np.zeros((8, 1), bool), np.ones((8, 1), np.int32))
    margin = find_reward("margin")
    found = env.judge(prompts, index, lists, margin, SETTINGS, 3, greedy)
    assert found.rewards.shape == shape
    assert found.texts == texts
    np.testing.assert_allclose(found.list_gains[:, 0], 0, atol=1e-5)
    np.testing.assert_allclose(found.greedy, found.rewards[:, 1], atol=1e-6)
    figures = found.figures()
    assert figures["list_gain"] == pytest.approx(found.list_gains.mean())
    room = found.rewards.max(1).mean() - found.rewards.mean()
    assert figures["group_room"] == pytest.approx(room, abs=1e-6)
    # A gallery with other lists is another gallery, and gives other gains.
    first = env.gallery
    told = {x.listing_id: "colour: red" for x in env.builder.listings}
    env.gallery = env.embedded(told)
    other = env.bare_rewards(index, margin, SETTINGS, 3)
    env.gallery = first
    np.testing.assert_array_equal(env.bare_rewards(index, margin, SETTINGS, 3), found.bare)
    assert np.abs(other - found.bare).max() > 1e-4
    ranked = env.bare_rewards(index, find_reward("whole_ndcg"), SETTINGS, 3)
    assert ((ranked > 0) & (ranked <= 1)).all()


def test_texts_are_mended_and_put_beside_each_other():
    bad = np.array([[False, True], [True, False]])
    texts = ["a: 1", "b: 2; c", "Nothing", "d: 4; e: 5"]
    lists = WrittenLists(texts, bad, np.full((2, 2), 3, np.int32))
    assert lists.attributes.tolist() == [[1, 0], [0, 2]]
    mended = lists.mended()
    assert mended.texts == ["a: 1", "b: 2", "", "d: 4; e: 5"]
    assert mended.attributes.tolist() == [[1, 1], [0, 2]]
    one = WrittenLists(["x: 1", "y: 2"], np.zeros((2, 1), bool), np.ones((2, 1), np.int32))
    both = lists.beside(one)
    assert both.texts == [*texts[:2], "x: 1", *texts[2:], "y: 2"]
    assert both.malformed.tolist() == [[False, True, False], [True, False, False]]


def test_a_group_lives_by_reward_or_by_rank(outcome):
    greedy = dataclasses.replace(SETTINGS, baseline="greedy")
    by_rank = dataclasses.replace(SETTINGS, live_by="rank")
    none = np.zeros((2, 2), bool)
    rollout = Rollout.of(outcome, none, [""] * 4, find_reward("margin"), -0.1)
    assert rollout.live(SETTINGS).tolist() == [True, True]
    alike = outcome._replace(rank=np.array([[1, 4], [2, 2]], np.int32))
    rollout = Rollout.of(alike, none, [""] * 4, find_reward("margin"), -0.1)
    assert rollout.live(SETTINGS).tolist() == [True, True]
    assert rollout.live(by_rank).tolist() == [True, False]
    # Recall@3 of both lists of the second query is 1; only the greedy list differs.
    rollout = Rollout.of(alike, none, [""] * 4, find_reward("recall"), -0.1)
    assert rollout.live(SETTINGS).tolist() == [True, False]
    told = dataclasses.replace(rollout, greedy=np.array([1.0, 0.0], np.float32))
    assert told.live(greedy).tolist() == [True, True]


def test_permuted_rewards_are_those_of_the_group(outcome, rng):
    rollout = Rollout.of(outcome, MALFORMED, [""] * 4, find_reward("margin"), -0.1)
    drawn = [rollout.permuted(rng) for _ in range(20)]
    assert {tuple(x[0]) for x in drawn} == {(0.5, -0.25), (-0.25, 0.5)}
    for x in drawn:
        np.testing.assert_array_equal(x[1], rollout.rewards[1])


def test_rows_of_a_rollout_are_those_of_its_queries(outcome):
    rollout = Rollout.of(outcome, MALFORMED, list("abcd"), find_reward("recall"), -0.1)
    found = rollout.rows(np.array([1]))
    assert found.texts == ["c", "d"]
    np.testing.assert_array_equal(found.rewards, rollout.rewards[1:])
    np.testing.assert_array_equal(found.outcome.margin, outcome.margin[1:])
    assert found.outcome.k == outcome.k


@pytest.mark.parametrize("environment", ["packed", "chat"], indirect=True)
def test_the_judge_finds_at_the_start_what_it_kept(environment, tmp_path):
    env, architecture, params = environment
    asked = (tmp_path, SETTINGS, architecture, params, env, find_reward("recall"), 0)
    judge = HeldOutEvaluator.open(*asked)
    assert judge(params) == pytest.approx(judge.at_start)
    assert judge.at_start["held_out/gain"] == 0
    again = HeldOutEvaluator.open(*asked)
    assert (again.k, again.at_start) == (judge.k, judge.at_start)


@pytest.mark.parametrize("environment", ["packed", "chat"], indirect=True)
def test_constrained_samples_are_never_malformed(environment, tmp_path):
    env, architecture, params = environment
    settings = dataclasses.replace(SETTINGS, constrained=True, temperature=1.5)
    # Room for the shortest list of an untrained tokenizer.
    text = dataclasses.replace(env.builder.text, max_attribute_tokens=24)
    builder = dataclasses.replace(env.builder, text=text)
    texts = {x.listing_id: "shape: circle; colour: red" for x in builder.listings}
    rows = architecture.config.text.vocab_size
    own = RarEnvironment(builder, env._encoder, texts, settings, 0, vocab_size=rows)
    reward = find_reward("margin", settings)
    judge = HeldOutEvaluator.open(tmp_path, settings, architecture, params, own, reward, 0)
    assert judge.at_start["held_out/malformed_share"] == 0
    assert judge.at_start["held_out/attribute_count"] >= 1


@pytest.mark.parametrize("environment", ["bare"], indirect=True)
def test_a_new_reward_is_one_object_and_pays_only_for_what_it_needs(environment):
    """Everything that these rewards take stands in this test."""
    env, seen = environment[0], []

    def first_is_best(outcome):
        seen.append(outcome)
        return (outcome.rank == 1) * 0.5

    index = np.array(env.training_queries[:2])
    prompts = env.prompts([env.builder.prompt(int(i)) for i in index])
    tokenizer = env.builder.tokenizer
    ids = np.array([*tokenizer.encode("shape: circle"), tokenizer.eos_id], np.int32)
    tokens = np.broadcast_to(ids, (2, 3, len(ids)))
    written = Generation(
        tokens=tokens,
        logprobs=np.zeros(tokens.shape),
        mask=np.ones(tokens.shape, bool),
        finished=np.ones((2, 3), bool),
    )
    lists = WrittenLists.of(written, tokenizer)
    for needs in (set(), {"ranks"}, {"margin"}):
        found = env.judge(prompts, index, lists, Reward(first_is_best, needs), SETTINGS, 1)
        # What the query earns without a list comes after its lists.
        outcome, bare = seen[-2:]
        assert bare.rank.shape == (2, 1)
        assert {x for x in ("ranks", "margin") if getattr(outcome, x) is not None} == needs
        np.testing.assert_allclose(found.rewards, 0.5 * found.recall)
        assert not found.malformed.any()


def test_a_text_is_ranked_as_the_encoder_would(environment):
    """The samples of a group share the picture of their prompt, wherever it was packed; that of a
    generator that cuts pictures otherwise is not looked at.
    """
    env = environment[0]
    index = np.array(env.training_queries[:3])
    prompts = env.prompts([env.writer.prompt(int(i)) for i in index])
    texts = ["shape: circle", "colour: red; letter: k"] * 3
    found = env.stand(prompts, index, texts, 3).rank.ravel()
    rows = [
        env.builder.embedder(int(i), t) for i, t in zip(np.repeat(index, 2), texts, strict=True)
    ]
    gallery = np.asarray(env.gallery)[: len(env.builder.listings)]
    scores = env._encoder.embed_rows(env.builder, rows) @ gallery.T
    for score, own, rank in zip(scores, np.repeat(index, 2), found, strict=True):
        others = np.arange(len(score)) != own
        relevant = others & np.isin(np.arange(len(score)), env._same(int(own)))
        best = score[relevant].max()
        # Within rounding: near ties may fall either way.
        rivals = score[others & ~relevant]
        assert (rivals > best + 1e-6).sum() < rank <= (rivals >= best - 1e-6).sum() + 1
