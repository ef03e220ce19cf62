"""Bytes of saved instructions, counted by hand."""

import pytest

from afmrl_jax.performance.compiled.traffic import loop_shares, traffic
from afmrl_jax.performance.hlo import Program

FUSED = """
%cut (p: f32[8,256], i: s32[]) -> f32[1,256] {
  %p = f32[8,256]{1,0} parameter(0)
  %q = f32[8,256]{1,0} bitcast(%p)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,256]{1,0} dynamic-slice(%q, %i, %i), dynamic_slice_sizes={1,256}
}
%put (p: f32[8,256], x: f32[1,256], i: s32[]) -> f32[8,256] {
  %p = f32[8,256]{1,0} parameter(0)
  %x = f32[1,256]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %t = f32[1,256]{1,0} negate(%x)
  ROOT %u = f32[8,256]{1,0} dynamic-update-slice(%p, %t, %i, %i)
}
%two (p: f32[8,256]) -> (f32[8,256], f32[256]) {
  %p = f32[8,256]{1,0} parameter(0)
  %r = f32[256]{0} slice(%p), slice={[0:1], [0:256]}
  %t = f32[8,256]{1,0} negate(%p)
  ROOT %b = (f32[8,256]{1,0}, f32[256]{0}) tuple(%t, %r)
}
%body (c: (s32[], f32[8,256])) -> (s32[], f32[8,256]) {
  %c = (s32[], f32[8,256]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  %v = f32[8,256]{1,0} get-tuple-element(%c), index=1
  %w = f32[8,256]{1,0} copy(%v)
  ROOT %t = (s32[], f32[8,256]{1,0}) tuple(%n, %w)
}
%ends (c: (s32[], f32[8,256])) -> pred[] {
  %c = (s32[], f32[8,256]{1,0}) parameter(0)
  ROOT %x = pred[] custom-call(%c), custom_call_target="any"
}
"""
WHOLE, ROW, NUMBER = 4 * 8 * 256, 4 * 256, 4


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("f32[8,256]{1,0} negate(%a)", 2 * WHOLE),
        ("f32[8,256]{1,0} bitcast(%a)", 0),
        ("f32[1,256]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,256}", 2 * ROW),
        ("f32[8,256]{1,0} dynamic-update-slice(%a, %x, %i, %i)", 2 * ROW),
        ("f32[1,256]{1,0} fusion(%a, %i), kind=kLoop, calls=%cut", 2 * ROW),
        ("f32[8,256]{1,0} fusion(%a, %x, %i), kind=kLoop, calls=%put", 2 * ROW),
        ("(f32[8,256]{1,0}, f32[256]{0}) fusion(%a), kind=kLoop, calls=%two", 2 * WHOLE + ROW),
        (
            "(s32[], f32[8,256]{1,0}) while(%z), condition=%ends, body=%body, "
            'backend_config={"known_trip_count":{"n":"5"}}',
            5 * 2 * WHOLE,
        ),
        ("f32[8,256]{1,0:S(1)} copy(%a)", WHOLE),
        (
            '(f32[8,256]{1,0}, s8[999]{0}) custom-call(%a, %x), custom_call_target="__cublas$gemm"',
            2 * WHOLE + ROW,
        ),
    ],
)
def test_bytes_of_an_instruction(line, expected):
    text = f"""{FUSED}
ENTRY %main (a: f32[8,256], x: f32[1,256], i: s32[]) -> f32[8,256] {{
  %a = f32[8,256]{{1,0}} parameter(0)
  %x = f32[1,256]{{1,0}} parameter(1)
  %i = s32[] parameter(2)
  %z = (s32[], f32[8,256]{{1,0}}) tuple(%i, %a)
  ROOT %r = {line}
}}
"""
    found = traffic(Program.parse(text), "main")
    # A place of four bytes may be read beside.
    assert found - expected in (0, NUMBER)


LOOP = """
%partly (x: bf16[64,2,4096], w: bf16[2,4096,512]) -> f32[2,64,512] {
  %x = bf16[64,2,4096]{2,1,0} parameter(0)
  %w = bf16[2,4096,512]{2,1,0} parameter(1)
  ROOT %d = f32[2,64,512]{2,1,0} dot(%x, %w), lhs_batch_dims={1}, lhs_contracting_dims={2}, \
rhs_batch_dims={0}, rhs_contracting_dims={1}
}
%plus (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}
%whole (p: f32[2,64,512]) -> bf16[64,512] {
  %p = f32[2,64,512]{2,1,0} parameter(0)
  %z = f32[] constant(0)
  %r = f32[64,512]{1,0} reduce(%p, %z), dimensions={0}, to_apply=%plus
  ROOT %c = bf16[64,512]{1,0} convert(%r)
}
%store (p: bf16[64,80,512], x: bf16[64,1,512], i: s32[]) -> bf16[64,80,512] {
  %p = bf16[64,80,512]{2,1,0} parameter(0)
  %x = bf16[64,1,512]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = bf16[64,80,512]{2,1,0} dynamic-update-slice(%p, %x, %i, %i, %i)
}
%body (c: (bf16[8192,512], bf16[64,80,512], bf16[64,8192])) -> (bf16[8192,512]) {
  %c = (bf16[8192,512]{1,0}, bf16[64,80,512]{2,1,0}, bf16[64,8192]{1,0}) parameter(0)
  %w = bf16[8192,512]{1,0} get-tuple-element(%c), index=0
  %k = bf16[64,80,512]{2,1,0} get-tuple-element(%c), index=1
  %h = bf16[64,8192]{1,0} get-tuple-element(%c), index=2
  %t = bf16[64,8192]{1,0} negate(%h)
  %v = bf16[2,4096,512]{2,1,0} bitcast(%w)
  %g = bf16[64,2,4096]{2,1,0} bitcast(%t)
  %i = s32[] constant(1)
  %d = f32[2,64,512]{2,1,0} fusion(%g, %v), kind=kCustom, calls=%partly
  %y = bf16[64,512]{1,0} fusion(%d), kind=kInput, calls=%whole
  %b = bf16[64,1,512]{2,1,0} bitcast(%y)
  %n = bf16[64,80,512]{2,1,0} fusion(%k, %b, %i), kind=kLoop, calls=%store
  %q = bf16[64,80,512]{2,1,0} negate(%n)
  ROOT %r = (bf16[8192,512]{1,0}) tuple(%w)
}
%ends (c: (bf16[8192,512], bf16[64,80,512], bf16[64,8192])) -> pred[] {
  %c = (bf16[8192,512]{1,0}, bf16[64,80,512]{2,1,0}, bf16[64,8192]{1,0}) parameter(0)
  ROOT %x = pred[] custom-call(%c), custom_call_target="any"
}
ENTRY %main (z: (bf16[8192,512], bf16[64,80,512], bf16[64,8192])) -> (bf16[8192,512]) {
  %z = (bf16[8192,512]{1,0}, bf16[64,80,512]{2,1,0}, bf16[64,8192]{1,0}) parameter(0)
  ROOT %o = (bf16[8192,512]{1,0}) while(%z), condition=%ends, body=%body
}
"""


def test_bytes_of_a_turn_by_what_they_are():
    program = Program.parse(LOOP)
    loop = program.of(program.entry)["o"]
    found = loop_shares(program, loop)
    weights, cache, state = 2 * 8192 * 512, 2 * 64 * 80 * 512, 2 * 64 * 8192
    row, partial = 2 * 64 * 512, 4 * 2 * 64 * 512
    # The state is large enough to be taken for a cache where the loop hands it over.
    assert found["carried"] == weights + row + cache + state
    assert found["partial"] == 2 * partial
    number = 4
    assert found["other"] == 2 * state + row + row + number + cache
    assert sum(found.values()) == traffic(program, "body")
