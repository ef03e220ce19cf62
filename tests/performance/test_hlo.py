"""The parser of compiled programs, on one that this machine compiles and on saved lines."""

import jax
import jax.numpy as jnp
import pytest

from afmrl_jax.errors import RunError
from afmrl_jax.performance.hlo import HloArray, Program

TEXT = """
%fused (p: bf16[4,8,16], i: s32[]) -> bf16[1,8,16] {
  %p = bf16[4,8,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %cut = bf16[1,8,16]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,8,16}
}

ENTRY %main (x: bf16[4,8,16]) -> (bf16[1,8,16], s8[3]) {
  %x = bf16[4,8,16]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %n = s32[] constant(2)
  %slice = bf16[1,8,16]{2,1,0} fusion(%x, %n), calls=%fused, metadata={op_name="jit(f)/cut"}
  %same = bf16[1,8,16]{2,1,0} bitcast(%slice)
  %room = s8[3]{0} custom-call(%same), custom_call_target="room"
  ROOT %both = (bf16[1,8,16]{2,1,0}, s8[3]{0}) tuple(%same, %room)
}
"""


def test_instructions_of_saved_text():
    program = Program.parse(TEXT)
    entry = program.of(program.entry)
    assert list(entry) == ["x", "n", "slice", "same", "room", "both"]
    assert entry["x"].arrays == (HloArray("bf16", (4, 8, 16), on_chip=True),)
    assert entry["slice"].operands == ("x", "n")
    assert entry["slice"].source == "jit(f)/cut"
    assert program.called(entry["slice"], "calls") == "fused"
    assert program.inner == {"fused"}
    assert entry.root.name == "both"
    assert [x.bytes for x in entry.root.arrays] == [256, 3]
    assert [x.name for x in entry.users["same"]] == ["room", "both"]
    assert entry.through("same") is entry["slice"]
    inside = program.of("fused")
    assert inside.parameters[1].name == "i"
    assert inside.root.ints("dynamic_slice_sizes") == (1, 8, 16)
    assert program.of("missing") == {}


def test_loops_of_a_program_compiled_here():
    def work(x):
        x = jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, None, length=7)[0]
        return jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x + jnp.exp(x), x)

    program = Program.parse(jax.jit(work).lower(jnp.ones(3)).compile().as_text())
    loops = [x for _, x in program.all() if x.opcode == "while"]
    assert sorted(program.trips(x) or 0 for x in loops) == [0, 7]
    assert all(program.of(program.called(x, "body")) for x in loops)


def test_text_without_an_entry():
    with pytest.raises(RunError, match="as_text"):
        Program.parse("HloModule empty")
