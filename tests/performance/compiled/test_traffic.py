"""Bytes of saved instructions, counted by hand."""

import pytest

from afmrl_jax.performance.compiled.traffic import traffic
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
