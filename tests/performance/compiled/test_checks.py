"""Every rule fires on a program that breaks it, and on none that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afmrl_jax.models.qwen_vl import fused_attention
from afmrl_jax.models.qwen_vl.attention import AttentionLayout, attend
from afmrl_jax.performance.compiled.attention import noting_masks
from afmrl_jax.performance.compiled.checks import Finding, grouped, host_requests
from afmrl_jax.performance.compiled.inspection import look, token_loop
from afmrl_jax.performance.compiled.moves import moved_in_loop
from afmrl_jax.performance.compiled.programs import Case
from afmrl_jax.performance.hlo import Program
from afmrl_jax.runtime.hardware import building_for

WEIGHT = "bf16[4,512,512]{2,1,0}"


def decoding(*body, fused=""):
    """A loop over tokens that carries weights and a cache, with these lines in it."""
    lines = "\n  ".join(body)
    return Program.parse(f"""
{fused}
%body (c: (s32[], {WEIGHT}, f32[64,4096])) -> (s32[], {WEIGHT}, f32[64,4096]) {{
  %c = (s32[], {WEIGHT}, f32[64,4096]{{1,0}}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %w = {WEIGHT} get-tuple-element(%c), index=1
  %kv = f32[64,4096]{{1,0}} get-tuple-element(%c), index=2
  {lines}
  ROOT %t = (s32[], {WEIGHT}, f32[64,4096]{{1,0}}) tuple(%n, %w, %kv)
}}
%ends (c: (s32[], {WEIGHT}, f32[64,4096])) -> pred[] {{
  %c = (s32[], {WEIGHT}, f32[64,4096]{{1,0}}) parameter(0)
  ROOT %any = pred[] custom-call(%c), custom_call_target="any"
}}
ENTRY %main (z: (s32[], {WEIGHT}, f32[64,4096])) -> (s32[], {WEIGHT}, f32[64,4096]) {{
  %z = (s32[], {WEIGHT}, f32[64,4096]{{1,0}}) parameter(0)
  ROOT %loop = (s32[], {WEIGHT}, f32[64,4096]{{1,0}}) while(%z), condition=%ends, body=%body
}}
""")


def moved(*body, fused=""):
    program = decoding(*body, fused=fused)
    return moved_in_loop(program, token_loop(program))


SLICED = f"""%cut (p: {WEIGHT}, i: s32[]) -> bf16[1,512,512] {{
  %p = {WEIGHT} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = bf16[1,512,512]{{2,1,0}} dynamic-slice(%p, %i, %i, %i)
}}"""
CONVERTED = """%gemm (p: f32[64,4096], x: bf16[8,64]) -> bf16[8,4096] {
  %p = f32[64,4096]{1,0} parameter(0)
  %x = bf16[8,64]{1,0} parameter(1)
  %n = bf16[64,4096]{1,0} convert(%p)
  ROOT %d = bf16[8,4096]{1,0} dot(%x, %n), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}"""
WRITTEN = """%put (p: f32[64,4096], i: s32[], x: f32[64,1]) -> f32[64,4096] {
  %p = f32[64,4096]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[64,1]{1,0} parameter(2)
  ROOT %u = f32[64,4096]{1,0} dynamic-update-slice(%p, %x, %i, %i)
}"""


@pytest.mark.parametrize(
    ("line", "fused", "word"),
    [
        ("%bad = bf16[1,512,512]{2,1,0} fusion(%w, %n), calls=%cut", SLICED, "dynamic-slice"),
        (f"%bad = {WEIGHT} copy(%w)", "", "copy"),
        ("%bad = f32[4,512,512]{2,1,0} convert(%w)", "", "convert"),
        ("%bad = bf16[4,512,1024]{2,1,0} concatenate(%w, %w), dimensions={2}", "", "concatenate"),
        ("%bad = bf16[8,4096]{1,0} fusion(%kv, %x), kind=kCustom, calls=%gemm", CONVERTED, "f32"),
        ("%bad = f32[64,4096]{1,0} copy(%kv)", "", "copy"),
    ],
)
def test_what_a_token_loop_must_not_move(line, fused, word):
    (found,) = moved("%x = bf16[8,64]{1,0} constant({...})", line, fused=fused)
    assert found.instruction == "bad"
    assert word in found.what
    assert "array of its own" in found.remedy


@pytest.mark.parametrize(
    ("line", "fused"),
    [
        ("%good = f32[64,4096]{1,0} fusion(%kv, %n, %x), kind=kLoop, calls=%put", WRITTEN),
        ("%good = bf16[1,8,8]{2,1,0} slice(%w), slice={[0:1], [0:8], [0:8]}", ""),
        ("%good = bf16[4,512,64]{2,1,0} dot(%w, %x), lhs_contracting_dims={2}", ""),
    ],
)
def test_what_it_may(line, fused):
    assert moved("%x = f32[64,1]{1,0} constant({...})", line, fused=fused) == []


def test_a_loop_over_layers_inside_is_looked_into():
    inner = f"""{SLICED}
%layer (c: (s32[], {WEIGHT})) -> (s32[], {WEIGHT}) {{
  %c = (s32[], {WEIGHT}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %w = {WEIGHT} get-tuple-element(%c), index=1
  %bad = bf16[1,512,512]{{2,1,0}} fusion(%w, %n), kind=kLoop, calls=%cut
  ROOT %t = (s32[], {WEIGHT}) tuple(%n, %w)
}}
%less (c: (s32[], {WEIGHT})) -> pred[] {{
  %c = (s32[], {WEIGHT}) parameter(0)
  ROOT %any = pred[] custom-call(%c), custom_call_target="any"
}}"""
    known = 'backend_config={"known_trip_count":{"n":"4"}}'
    (found,) = moved(
        f"%start = (s32[], {WEIGHT}) tuple(%n, %w)",
        f"%l = (s32[], {WEIGHT}) while(%start), condition=%less, body=%layer, {known}",
        fused=inner,
    )
    assert found.instruction == "bad"


def test_layers_alike_are_told_once():
    found = [Finding("moved", f"copy.{n}", f"a copy from copy.{n}", "do not") for n in range(36)]
    (line,) = grouped(found)
    assert line == "copy.0: a copy from copy.0; do not (and 35 more alike)"


def test_a_callback_is_found():
    def work(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x) + 1

    asks, silent = (
        Program.parse(jax.jit(f).lower(jnp.float32(1)).compile().as_text()) for f in (work, jnp.sin)
    )
    assert host_requests(silent) == []
    assert "callback" in host_requests(asks)[0].what


def trace(layout, rows, length=1024):
    q = jax.ShapeDtypeStruct((rows, length, 2, 64), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((rows, 2, length, 64), jnp.bfloat16)

    def loss(q, k, v):
        return jnp.sum(attend(q, k, v, layout(rows, length), "auto").astype(jnp.float32))

    with building_for("gpu"), noting_masks() as found:
        jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), q, k, k)
    return found


def test_lengths_and_causality_are_no_mask():
    assert trace(lambda rows, length: AttentionLayout(causal=True), 8) == []

    def segments(rows, length):
        return AttentionLayout(segments=jnp.ones((rows, length), jnp.int32))

    # Bins with several pictures have masks, for few rows at a time.
    assert trace(segments, 8) == []


def test_a_mask_over_pairs_is_found():
    q = jnp.zeros((8, 1024, 2, 8), jnp.bfloat16)

    def masked(q):
        kernel = fused_attention._STAND_IN.get()
        return kernel(q, q, q, mask=jnp.ones((8, 1, 1024, 1024), bool))

    assert fused_attention.PAIRS_AT_ONCE < 8 * 1024**2
    with building_for("gpu"), noting_masks() as found:
        jax.eval_shape(masked, q)
        jax.eval_shape(masked, q[:, :, :1])
    assert ["bool[8, 1, 1024, 1024]" in x.what for x in found] == [True, True]


def test_what_a_program_is_held_to():
    program = decoding(f"%bad = {WEIGHT} copy(%w)")
    case = Case("decode", lambda mesh: None, token_loop=True, turns=80, ideal_bytes=2 * 4 * 512**2)
    found = look(case, program)
    # Read once more, and written.
    assert found.bytes_ratio == 2
    assert [x.rule for x in found.findings] == ["moved"]
    assert "bad" in found.record()["findings"][0]
