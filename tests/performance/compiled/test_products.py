"""Products read from programs, against what they are known to multiply."""

import jax
import jax.numpy as jnp
import pytest

from afmrl_jax.performance.compiled.checks import vocabulary_products, wide_products
from afmrl_jax.performance.compiled.products import products
from afmrl_jax.performance.hlo import Program

HEAD = "ENTRY %main (a: f32[8], b: f32[8]) -> f32[8] {\n"


def read(work, *shapes, **options):
    structs = (jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes)
    text = jax.jit(work).lower(*structs).compile().as_text()
    return products(Program.parse(text), **options)


def saved(*lines):
    return products(Program.parse(HEAD + "\n".join(lines) + "\n}\n"))


def test_loops_multiply_and_branches_do_not_add():
    def work(x, y):
        x = jax.lax.scan(lambda x, _: (x @ y, None), x, None, length=5)[0]
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ y, lambda x: (x @ y) @ y, x)

    found = read(work, (128, 64), (64, 64))
    assert sum(x.flops for x in found) == (5 + 2) * 2 * 128 * 64 * 64


def test_loops_without_a_number_of_turns_take_the_given_one():
    def work(x, y):
        return jax.lax.while_loop(lambda x: x.sum() < 10, lambda x: x @ y, x)

    (found,) = read(work, (128, 64), (64, 64), unknown_trips=80)
    assert (found.times, found.contracted, found.result.dims) == (80, 64, (128, 64))


def test_batches_count_with_the_result():
    found = read(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), (4, 32, 64), (4, 64, 96))
    assert sum(x.flops for x in found) == 2 * 4 * 32 * 64 * 96


@pytest.mark.parametrize(("size", "wide"), [(512, 0), (2048, 1)])
def test_only_large_products_of_full_precision_are_wide(size, wide):
    def work(x, y):
        return jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST) + jnp.dot(x, y)

    found = read(work, (size, size), (size, size))
    assert len(wide_products(found)) == wide
    for one in wide_products(found):
        assert f"f32[{size}, {size}]" in one.what
        assert "BF16_BF16_F32_X3" in one.remedy


def test_an_algorithm_is_not_full_precision():
    (found,) = saved(
        "%a = f32[4096,2048]{1,0} parameter(0)",
        "%b = f32[2048,4096]{1,0} parameter(1)",
        "ROOT %d = f32[4096,4096]{1,0} dot(%a, %b), lhs_contracting_dims={1}, "
        "rhs_contracting_dims={0}, algorithm=dot_bf16_bf16_f32_x3",
    )
    assert found.precision == "dot_bf16_bf16_f32_x3"
    assert wide_products([found]) == []


def test_the_products_of_libraries():
    (found,) = saved(
        "%a = f32[32,64]{1,0} parameter(0)",
        "%b = f32[64,16]{1,0} parameter(1)",
        'ROOT %g = (f32[32,16]{1,0}, s8[99]{0}) custom-call(%a, %b), custom_call_target="__cublas'
        '$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{'
        '"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},'
        '"precision_config":{"operand_precision":["HIGHEST","HIGHEST"],"algorithm":"ALG_UNSET"}}}',
    )
    assert (found.flops, found.precision, found.wide) == (2 * 32 * 64 * 16, "highest", True)


def test_products_that_a_tpu_writes_as_convolutions():
    plain, batched = saved(
        "%a = bf16[32,64]{1,0} parameter(0)",
        "%b = bf16[64,16]{1,0} parameter(1)",
        "%c = bf16[32,16]{1,0} convolution(%a, %b), dim_labels=bf_io->bf",
        "%d = bf16[4,32,64]{2,1,0} parameter(2)",
        "%e = bf16[4,64,16]{2,1,0} parameter(3)",
        "ROOT %f = f32[4,32,16]{2,1,0} convolution(%d, %e), window={size=4 stride=3 pad=0_0 "
        "lhs_dilate=4}, dim_labels=0bf_0io->0bf",
    )
    assert plain.flops == 2 * 32 * 64 * 16
    assert batched.flops == 2 * 4 * 32 * 64 * 16


@pytest.mark.parametrize(("terms", "found"), [(999, 0), (1000, 1), (1001, 1), (1024, 1), (1536, 0)])
def test_a_vocabulary_may_be_padded(terms, found):
    every = read(lambda x, y: x @ y, (256, terms), (terms, 256))
    assert len(vocabulary_products(every, 1000)) == found
