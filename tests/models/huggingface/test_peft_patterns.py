"""rank_pattern and alpha_pattern: what they fit, and those that are refused."""

import re
import time
from pathlib import Path

import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.models.huggingface.peft_patterns import matched

WHERE = Path("adapter_config.json")
NAMES = [
    f"model.{part}.{number}.{name}"
    for part in ("language_model.layers", "visual.blocks")
    for number in range(12)
    for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "attn.qkv")
] + ["model.visual.merger.mlp.0", "model.visual.merger.mlp.2"]
GOOD = [
    {"q_proj": 1},
    {"proj": 1},
    {"self_attn.q_proj": 1, "q_proj": 2, "k_proj": 3},
    {"q_proj": 2, "self_attn.q_proj": 1},
    {"model.language_model.layers.1.self_attn.q_proj": 1},
    {"layers.1.self_attn.q_proj": 1, "layers.11.self_attn.q_proj": 2},
    {r"^model\.visual.*": 1},
    {r".*\.layers\.\d+\.self_attn\.(q|k)_proj": 1},
    {r"layers\.(0|1[01]|[2-4])\..*gate_proj": 1, r"blocks\.\d{2}\.attn\.qkv": 2},
    {r"(?:language_model\.)?layers\.3\.mlp\.gate_proj": 1, "q_proj|k_proj": 2},
    {r"merger\.mlp\.[0-2]": 1, r"blocks\.[^1]\.attn\.qkv": 3, r"\w+_proj": 2},
    {"": 1},
    {"x" * 150: 1},
]


def theirs(patterns, name):
    """As `peft` states the rule."""
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return value
    return 0


@pytest.mark.parametrize("patterns", GOOD, ids=str)
def test_patterns_fit_a_name_or_its_end_and_the_first_counts(patterns):
    assert matched(patterns, NAMES, 0, WHERE) == [theirs(patterns, x) for x in NAMES]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("patterns", GOOD, ids=str)
def test_patterns_fit_as_in_peft(patterns):
    key_of = pytest.importorskip("peft.utils.other").get_pattern_key
    expected = [patterns.get(key_of(patterns.keys(), x), 0) for x in NAMES]
    assert matched(patterns, NAMES, 0, WHERE) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a|a)*",
        "(a|b){9}",
        "a**",
        "*",
        "(",
        ")",
        "a)|(b",
        "[a",
        "(?=a)",
        r"(a)\1",
        "(?P<a>b)",
        "é",
        "a\n",
        "[z-a]",
        "a.*b.*c.*d.*e.*f",
        "(a|a)" * 40,
        "(a?)" * 40,
        "(" * 400 + ")" * 400,
    ],
    ids=lambda x: x[:12],
)
def test_other_expressions_are_refused_at_once(pattern):
    begin = time.perf_counter()
    with pytest.raises(RunError, match=r"adapter_config\.json.*pattern.*merge_and_unload"):
        matched({pattern: 1}, NAMES, 0, WHERE)
    assert time.perf_counter() - begin < 1


def test_what_is_taken_is_matched_soon():
    """A pattern as slow as the bound allows, on as many names, which it almost fits."""
    names = ["model." + "a." * 45 + "b" + str(n) for n in range(390)]
    begin = time.perf_counter()
    assert not any(matched({r"[a.]*[a.]*[a.]*c": 1}, names, 0, WHERE))
    assert time.perf_counter() - begin < 60
    with pytest.raises(RunError, match="too long"):
        matched({r"[a.]*[a.]*[a.]*c": 1}, [*names, *names], 0, WHERE)


def test_many_patterns_and_long_names_are_refused():
    with pytest.raises(RunError, match="too long to match"):
        matched({f"a.*b.*{n}": 1 for n in range(1000)}, NAMES, 0, WHERE)
    with pytest.raises(RunError, match="300 characters"):
        matched({"a": 1}, ["x" * 300], 0, WHERE)
    assert matched({}, ["x" * 300], 7, WHERE) == [7]
