"""Programs read from their text: hand-made ones with known answers, and real ones whose sizes are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxdistill.parallel import collectives, costs, hlo

NESTED = """
HloModule nested

%inner_body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(2)
  %next = s32[] add(%i, %one)
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %y = f32[4,8]{1,0} negate(%x), metadata={op_name="jit(f)/inner/neg"}
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%next, %y)
}

%inner_condition (p.1: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[] constant(7)
  %p.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

%outer_body (q: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %q = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %w = (s32[], f32[4,8]{1,0}) while(%q), condition=%inner_condition, body=%inner_body
}

%outer_condition (q.1: (s32[], f32[4,8])) -> pred[] {
  %q.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %asked = pred[] custom-call(%q.1), custom_call_target="ask"
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[4,8]{1,0}) while(%begin), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_loops_in_loops_multiply_whether_xla_says_how_often_or_the_condition_does():
    module = hlo.parse(NESTED)
    negations = [times for line, times in hlo.executed(module) if line.operation == "negate"]
    assert negations == [3 * 4]  # ceil(7 / 2) inside
    assert hlo.unknown_loops(module) == 0
    assert hlo.unknown_loops(hlo.parse(NESTED.replace("known_trip_count", "unknown"))) == 1


def test_sizes_count_tuples_and_leave_fast_memory_out_where_that_is_asked():
    shape = "(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[3]{0:T(128)}, pred[])"
    assert hlo.size(shape) == 8 * 128 * 2 + 12 + 1
    assert hlo.size(shape, main_memory=True) == 12 + 1
    assert hlo.dims("f32[3,5]{1,0}") == (3, 5)


def one_line(text: str) -> hlo.Module:
    """A program of one instruction of two operands."""
    shapes = {"a": "f32[5,6,7]{2,1,0}", "b": "f32[5,7,8]{2,1,0}"}
    given = "".join(f"  %{name} = {shape} parameter({n})\n" for n, (name, shape) in enumerate(shapes.items()))
    return hlo.parse(f"ENTRY %main (a: f32[5,6,7], b: f32[5,7,8]) -> f32[5,6,8] {{\n{given}  ROOT %r = {text}\n}}\n")


@pytest.mark.parametrize(
    "text",
    [
        "f32[5,6,8]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
        "rhs_contracting_dims={1}",
        # the form that TPUs give a batched matmul: a window as long as the batch meets one number of each image
        "f32[5,6,8]{2,1,0} convolution(%a, %b), window={size=5 stride=4 lhs_dilate=5}, dim_labels=0bf_0io->0bf",
        'f32[5,6,8]{2,1,0} custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={'
        '"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
        '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}',
    ],
    ids=["dot", "convolution", "library"],
)
def test_a_batched_matmul_costs_what_it_multiplies_in_every_form(text):
    module = one_line(text)
    total = sum(times * costs.flops(module, line) for line, times in hlo.executed(module))
    assert total == 2 * 5 * 6 * 7 * 8


@pytest.mark.parametrize(("queries", "visited"), [(16, 16 * 16 / 2), (4, 4 * (12 + 4 / 2))])
def test_a_kernel_of_causal_attention_costs_what_the_last_queries_see(queries, visited):
    """All 16 positions, or the last fourth of them: those before it, and half of its own."""
    module = hlo.parse(f"""
ENTRY %main (q: bf16[2,{queries},8], k: bf16[2,16,8]) -> bf16[2,{queries},8] {{
  %q = bf16[2,{queries},8]{{2,1,0}} parameter(0)
  %k = bf16[2,16,8]{{2,1,0}} parameter(1)
  ROOT %splash_mha_fwd.1 = bf16[2,{queries},8]{{2,1,0}} custom-call(%q, %k), custom_call_target="tpu_custom_call"
}}
""")
    total = sum(times * costs.flops(module, line) for line, times in hlo.executed(module))
    assert total == 2 * (2 * 2 * 8) * visited  # q . k and p . v


def test_a_scan_of_matmuls_costs_its_length_and_moves_its_arrays():
    def f(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    text = jax.jit(f).lower(jnp.ones((8, 16)), jnp.ones((5, 16, 16))).compile().as_text()
    module = hlo.parse(text)
    assert sum(times * costs.flops(module, line) for line, times in hlo.executed(module)) == 5 * 2 * 8 * 16 * 16
    assert costs.moved(text) >= 5 * 4 * (16 * 16 + 2 * 8 * 16)


GROUPS = {
    "{{0,2},{1,3}}": [[0, 2], [1, 3]],
    "[2,2]<=[4]": [[0, 1], [2, 3]],
    "[2,2]<=[2,2]T(1,0)": [[0, 2], [1, 3]],
    "mesh['a'=2,'b'=2] {'b'}": [[0, 1], [2, 3]],
    "mesh['a'=2,'b'=2] {'a'}": [[0, 2], [1, 3]],
    "mesh['a'=4] {'a':(1)2}": [[0, 2], [1, 3]],
    "mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}": [[0, 1], [2, 3]],
    "{}": [[0, 1, 2, 3]],
}


@pytest.mark.parametrize("text", GROUPS)
def test_groups_are_understood_in_all_forms(text):
    program = f"""
ENTRY %main (a: f32[6]) -> f32[12] {{
  %a = f32[6]{{0}} parameter(0)
  ROOT %r = f32[12]{{0}} all-gather(%a), channel_id=1, replica_groups={text}, dimensions={{0}}
}}
"""
    (found,) = collectives.of(hlo.parse(program), 4)
    np.testing.assert_array_equal(found.groups, GROUPS[text])
    size = len(GROUPS[text][0])
    assert (found.kind, found.bytes, found.times, found.overlaps) == ("all-gather", 24 * size, 1, False)
    assert found.sent == 24 * (size - 1)


def test_a_permute_that_is_awaited_apart_is_one_and_overlaps():
    program = """
ENTRY %main (a: f32[6]) -> f32[6] {
  %a = f32[6]{0} parameter(0)
  %s = (f32[6]{0}, f32[6]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  ROOT %d = f32[6]{0} collective-permute-done(%s)
}
"""
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "tensor"))
    (found,) = collectives.of(hlo.parse(program), 4)
    assert found.overlaps
    assert found.sent == 24
    assert found.axes(mesh) == ("tensor",)


def test_what_the_sparsecores_of_a_tpu7x_gather_is_found_in_their_calls_and_overlaps():
    program = """
%offloaded (p: bf16[16,64]) -> bf16[64,64] {
  %p = bf16[16,64]{1,0} parameter(0)
  ROOT %g = bf16[64,64]{1,0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}, use_global_device_ids=true
}

ENTRY %main (a: bf16[16,64]) -> bf16[64,64] {
  %a = bf16[16,64]{1,0} parameter(0)
  %s = ((bf16[16,64]{1,0}), bf16[64,64]{1,0}) call-start(%a), async_execution_thread="sparsecore", to_apply=%offloaded
  ROOT %d = bf16[64,64]{1,0} call-done(%s)
}
"""
    (found,) = collectives.of(hlo.parse(program), 4)
    assert (found.kind, found.bytes, found.times, found.overlaps) == ("all-gather", 64 * 64 * 2, 1, True)
