"""Sampling against a model that is run anew for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import chisquare

from afmrl_jax.data.attributes.text_format import parse_attributes
from afmrl_jax.data.attributes.token_grammar import attribute_grammar
from afmrl_jax.data.batching.row_packing import RowPacker
from afmrl_jax.models.generation import completion_logprobs, generate
from afmrl_jax.models.shared_prefix import unpacked


@pytest.fixture
def prompts(builder):
    rows = [builder.prompt(i) for i in (0, 7, 50)]
    return jax.tree.map(jnp.asarray, builder.batch(rows)), rows


# What does not depend on the family, which gives no more than logits, is tried with one of them:
# that of the visual tokens behind several layers.
one_family = pytest.mark.parametrize("model", ["qwen3_vl"], indirect=True)
by_group = pytest.mark.parametrize(
    ("model", "group"),
    [("qwen2_vl", 4), ("qwen2_5_vl", 4), ("qwen3_vl", 4), ("qwen3_vl", 1)],
    indirect=["model"],
)

STATIC = ("eos_id", "pad_id", "group_size", "max_new_tokens", "temperature", "top_k", "top_p")
# Compiled as stages do; operation by operation takes a compilation for each.
forward = nnx.jit(lambda model, batch: model(batch))
written = nnx.jit(generate, static_argnames=STATIC)
likelihoods = nnx.jit(completion_logprobs, static_argnames=("temperature",))


def run(model, prompt, tokenizer, *, by=written, **options):
    settings = {"group_size": 1, "max_new_tokens": 6, "temperature": 0.0} | options
    return by(
        model,
        prompt,
        key=jax.random.key(3),
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        **settings,
    )


def test_greedy_tokens_are_those_of_a_full_pass_for_every_token(model, prompts, builder, tokenizer):
    prompt, rows = prompts
    found = run(model, prompt, tokenizer)
    for number, row in enumerate(rows):
        tokens = list(row.tokens)
        for step in range(6):
            one = builder.batch([type(row)(tokens, row.pictures)])
            hidden = forward(model, jax.tree.map(jnp.asarray, one))
            expected = int(jnp.argmax(model.logits(hidden[0, len(tokens) - 1])))
            assert int(found.tokens[number, 0, step]) == expected
            if expected == tokenizer.eos_id:
                break
            tokens.append(expected)


@by_group
def test_sampled_logprobs_are_the_teacher_forced_ones(model, prompts, tokenizer, group):
    prompt, _ = prompts
    found = run(model, prompt, tokenizer, group_size=group, temperature=0.8, max_new_tokens=8)
    twin, entropy = likelihoods(model, prompt, found.tokens, found.mask, temperature=0.8)
    np.testing.assert_allclose(found.logprobs, twin, atol=2e-5)
    assert float(jnp.min(entropy)) >= 0


@one_family
def test_samples_do_not_depend_on_the_rows_beside_them(model, prompts, builder, tokenizer):
    prompt, rows = prompts
    options = {"group_size": 3, "temperature": 1.0}
    together = run(model, prompt, tokenizer, **options)
    alone = jax.tree.map(jnp.asarray, builder.batch(rows[1:2], prompt.tokens.shape[1]))
    ids = jnp.array([1], jnp.int32)
    np.testing.assert_array_equal(
        together.tokens[1], run(model, alone, tokenizer, row_ids=ids, **options).tokens[0]
    )


def test_samples_do_not_depend_on_the_side_of_the_padding(model, prompts, builder, tokenizer):
    prompt, rows = prompts
    length = prompt.tokens.shape[1]
    left = jax.tree.map(jnp.asarray, builder.batch(rows, length, side="left"))
    options = {"group_size": 2, "temperature": 1.0}
    one, two = (run(model, x, tokenizer, **options) for x in (prompt, left))
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_allclose(one.logprobs, two.logprobs, atol=2e-5)


@one_family
def test_samples_of_a_group_differ_and_end_properly(model, prompts, tokenizer):
    prompt, _ = prompts
    found = run(model, prompt, tokenizer, group_size=8, temperature=1.5, max_new_tokens=10)
    tokens, mask = np.asarray(found.tokens), np.asarray(found.mask)
    assert len({tuple(x) for x in tokens[0].tolist()}) > 1
    for row, seen, done in zip(
        tokens.reshape(-1, 10),
        mask.reshape(-1, 10),
        np.asarray(found.finished).ravel(),
        strict=True,
    ):
        ends = np.flatnonzero(row == tokenizer.eos_id)
        assert done == bool(len(ends))
        length = ends[0] + 1 if len(ends) else 10
        assert seen.tolist() == [n < length for n in range(10)]
        assert (row[length:] == tokenizer.pad_id).all()


@one_family
@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 1e-6}])
def test_a_cut_to_one_token_is_greedy(model, prompts, tokenizer, cut):
    prompt, _ = prompts
    sampled = run(model, prompt, tokenizer, temperature=1.0, **cut)
    np.testing.assert_array_equal(sampled.tokens, run(model, prompt, tokenizer).tokens)


@one_family
def test_a_grammar_makes_every_list_well_formed(model, prompts, tokenizer):
    prompt, _ = prompts
    keys = ["colour", "shape", "letter"]
    rows = model.config.text.vocab_size
    grammar = attribute_grammar(tokenizer.token_bytes(), keys, vocab_size=rows)
    budget = int(grammar.distance[0].min()) + 12
    for temperature in (0.0, 1.5):
        found = run(
            model,
            prompt,
            tokenizer,
            group_size=16,
            temperature=temperature,
            max_new_tokens=budget,
            grammar=grammar,
        )
        assert np.asarray(found.finished).all()
        for tokens, mask in zip(
            np.asarray(found.tokens).reshape(-1, budget),
            np.asarray(found.mask).reshape(-1, budget),
            strict=True,
        ):
            text = tokenizer.decode(tokens[: mask.sum() - 1].tolist()).strip()
            assert {key for key, _ in parse_attributes(text)} <= set(keys)
    twin, _ = likelihoods(model, prompt, found.tokens, found.mask, temperature=1.5)
    np.testing.assert_allclose(found.logprobs, twin, atol=1e-4)


@one_family
def test_the_token_loop_stays_on_the_device(model, prompts, tokenizer):
    """One program without callbacks, infeeds or outfeeds: the host is not asked for a token."""
    prompt, _ = prompts
    settings = {"by": generate, "temperature": 1.0, "max_new_tokens": 50}
    program = jax.jit(lambda: run(model, prompt, tokenizer, **settings))
    text = program.lower().compile().as_text()
    assert text.count("while(") >= 1
    for word in ("callback", "infeed", "outfeed", "send(", "recv("):
        assert word not in text


@one_family
@pytest.mark.parametrize("cut", [{}, {"top_k": 40}, {"top_p": 0.6}])
def test_samples_pass_a_chi_square_test(model, prompts, builder, tokenizer, cut):
    """Against the distribution cut and made whole again, at the 0.1 % level."""
    count = 4000
    one = jax.tree.map(jnp.asarray, builder.batch(prompts[1][:1]))
    found = run(model, one, tokenizer, group_size=count, temperature=0.5, max_new_tokens=1, **cut)
    hidden = forward(model, one)[0, len(prompts[1][0].tokens) - 1]
    chance = np.asarray(jax.nn.softmax(model.logits(hidden) / 0.5), np.float64)
    order = np.argsort(-chance)
    before = np.cumsum(chance[order]) - chance[order]
    kept = order[: cut.get("top_k", len(order))] if "top_p" not in cut else order[before < 0.6]
    expected = np.zeros_like(chance)
    expected[kept] = chance[kept] / chance[kept].sum()
    seen = np.bincount(np.asarray(found.tokens).ravel(), minlength=len(expected))
    assert seen[expected == 0].sum() == 0
    # Rare tokens are counted together.
    often = expected * count >= 5
    bins = [*(seen[often]), seen[~often].sum()], [*(expected[often]), expected[~often].sum()]
    observed, wanted = (np.array(x, float) for x in bins)
    used = wanted > 0
    assert chisquare(observed[used], count * wanted[used]).pvalue > 1e-3


@pytest.fixture
def packed(prompts, builder):
    """The same prompts in bins, among others."""
    prompt, rows = prompts
    lengths = [[len(row.tokens) for row in rows]]
    packer = RowPacker.of(lengths, builder.tokenizer, builder.image, builder.text)
    found = packer.prompts(rows, prompt.tokens.shape[1])
    assert found.packed.segment.max() > 1
    return jax.tree.map(jnp.asarray, found)


@by_group
def test_prompts_that_share_bins_are_continued_as_if_alone(
    model, prompts, packed, tokenizer, group
):
    options = {"group_size": group, "temperature": 0.8, "max_new_tokens": 8}
    alone, found = (run(model, x, tokenizer, **options) for x in (prompts[0], packed))
    np.testing.assert_array_equal(found.tokens, alone.tokens)
    np.testing.assert_allclose(found.logprobs, alone.logprobs, atol=2e-5)


def test_given_text_behind_packed_prompts_has_the_same_gradient(model, prompts, packed, tokenizer):
    given = run(model, prompts[0], tokenizer, group_size=2, temperature=1.0)
    graphdef, params = nnx.split(model)

    def likelihood(params, prompt):
        whole = nnx.merge(graphdef, params)
        logprobs, entropy = completion_logprobs(whole, prompt, given.tokens, given.mask)
        return logprobs.sum() + entropy.sum(), (logprobs, entropy)

    gradient = jax.jit(jax.grad(likelihood, has_aux=True))
    (alone, values), (together, found) = (gradient(params, x) for x in (prompts[0], packed))
    for one, other in zip(found, values, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, float(jnp.abs(other).max())))


def test_packed_prompts_come_out_of_their_bins_as_they_went_in(prompts, packed):
    alone, found = prompts[0], unpacked(packed)
    np.testing.assert_array_equal(found.token_mask, alone.token_mask)
    for name in ("tokens", "positions"):
        one, other = getattr(found, name), getattr(alone, name)
        seen = np.broadcast_to(
            alone.token_mask[:, None] if one.ndim == 3 else alone.token_mask, one.shape
        )
        np.testing.assert_array_equal(np.asarray(one)[seen], np.asarray(other)[seen])
    np.testing.assert_array_equal(found.visual_start, alone.visual_start)
