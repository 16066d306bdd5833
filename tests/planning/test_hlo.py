"""Collectives of compiled programs: recorded texts in each notation, and real programs whose traffic is known."""

import functools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mtp_jax.planning.hlo import _groups, parse, traffic, type_bytes

PROGRAM = """HloModule jit_f, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p.1: f32[8,4]) -> f32[2,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  %all-reduce.9 = f32[8,4]{1,0} all-reduce(%p.1), replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %slice = f32[2,4]{1,0} dynamic-slice(%all-reduce.9, %zero), dynamic_slice_sizes={2,4}
}

%inner (t.1: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %t.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  %x.1 = f32[8,4]{1,0} get-tuple-element(%t.1), index=1
  %two = s32[] constant(2)
  %i.2 = s32[] add(%i.1, %two)
  %all-gather.1 = f32[32,4]{1,0:T(8,128)} all-gather(%x.1), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %out.1 = (s32[], f32[8,4]{1,0}) tuple(%i.2, %x.1)
}

%inner_condition (t.2: (s32[], f32[8,4])) -> pred[] {
  %t.2 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%t.2), index=0
  %end = s32[] constant(10)
  ROOT %less = pred[] compare(%i.3, %end), direction=LT
}

%outer (t.3: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %t.3 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.4 = s32[] get-tuple-element(%t.3), index=0
  %x.2 = f32[8,4]{1,0} get-tuple-element(%t.3), index=1
  %four = s32[] constant(4)
  %start = (s32[], f32[8,4]{1,0}) tuple(%four, %x.2)
  ROOT %while.1 = (s32[], f32[8,4]{1,0}) while(%start), condition=%inner_condition, body=%inner
}

%outer_condition (t.4: (s32[], f32[8,4])) -> pred[] {
  %t.4 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.5 = s32[] get-tuple-element(%t.4), index=0
  ROOT %always = pred[] constant(true)
}

%small (p.2: f32[8,4]) -> f32[8,4] {
  ROOT %p.2 = f32[8,4]{1,0} parameter(0)
}

%large (p.3: f32[8,4]) -> f32[8,4] {
  %p.3 = f32[8,4]{1,0} parameter(0)
  ROOT %all-reduce.2 = f32[8,4]{1,0} all-reduce(%p.3), replica_groups=mesh['a'=4,'b'=2] {'b'}, to_apply=%sum
}

ENTRY %main (x: f32[8,4], flag: pred[]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %flag = pred[] parameter(1)
  %scattered = f32[2,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %permute-start = (bf16[8,4]{1,0}, bf16[8,4]{1,0}) collective-permute-start(%half), source_target_pairs={{0,1},{1,0}}
  %half = bf16[8,4]{1,0} convert(%x)
  %permute-done = bf16[8,4]{1,0} collective-permute-done(%permute-start)
  %gather-start = (f32[8,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %gather-done = f32[16,4]{1,0} all-gather-done(%gather-start)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[8,4]{1,0}) tuple(%zero, %x)
  %while.2 = (s32[], /*index=1*/f32[8,4]{1,0}) while(%begin), condition=%outer_condition, body=%outer, """ \
    """backend_config={"known_trip_count":{"n":"7"}}
  ROOT %result = f32[8,4]{1,0} conditional(%flag, %x, %x), true_computation=%large, false_computation=%small
}
"""
ARRAY = 8 * 4 * 4  # bytes of f32[8,4]


def test_recorded_program():
    found = traffic(PROGRAM, 8)
    assert found.unknown_loops == ()
    assert found.by_kind() == {
        # In a loop of 3 turns (4, 6, 8) inside one of 7; and once as a pair of start and done.
        "all-gather": {"count": 3 * 7 + 1, "bytes": 21 * 4 * ARRAY + 2 * ARRAY,
                       "wire_bytes": 21 * 3 * ARRAY + ARRAY},
        "all-reduce": {"count": 1, "bytes": ARRAY, "wire_bytes": ARRAY},  # of the larger branch; 2 (2 - 1) / 2
        "reduce-scatter": {"count": 1, "bytes": ARRAY, "wire_bytes": ARRAY * 3 // 4},
        "collective-permute": {"count": 1, "bytes": ARRAY // 2, "wire_bytes": ARRAY // 2}}


CHAIN = """HloModule jit_f, is_scheduled=true

%piece.1 (p.1: f32[8,4]) -> f32[32,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[32,4]{1,0} all-gather(%p.1), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, EXTRA
}

%piece.2 (p.2: f32[8,4]) -> f32[32,4] {
  %p.2 = f32[8,4]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[32,4]{1,0} all-gather(%p.2), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}, EXTRA
}

ENTRY %main (x: f32[8,4]) -> f32[32,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %fusion.1 = f32[32,4]{1,0} fusion(%x), kind=kCustom, calls=%piece.1
  ROOT %fusion.2 = f32[32,4]{1,0} fusion(%x), kind=kCustom, calls=%piece.2
}
"""


@pytest.mark.parametrize("extra, count", [('frontend_attributes={chain_id="3"}', 1), ("metadata={}", 2)])
def test_a_collective_that_is_fused_with_several_computations_counts_once(extra, count):
    assert traffic(CHAIN.replace("EXTRA", extra), 8).by_kind() == {
        "all-gather": {"count": count, "bytes": count * 512, "wire_bytes": count * 384}}


BESIDE = """HloModule jit_f, is_scheduled=true

%called_computation.1 (p.1: f32[8,4]) -> f32[8,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %all-reduce.1 = f32[8,4]{1,0} all-reduce(%p.1), replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%sum
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %start = ((f32[8,4]{1,0}), f32[8,4]{1,0}) OPCODE(%x), async_execution_thread="sparsecore", HOW=%called_computation.1
  ROOT %done = f32[8,4]{1,0} OPCODE(%start)
}
"""


@pytest.mark.parametrize("opcode, how", [("call-start", "to_apply"), ("async-start", "calls")])
def test_a_collective_that_runs_beside_others_counts(opcode, how):
    """On TPU7x all large collectives are calls that the SparseCores run."""
    assert traffic(BESIDE.replace("OPCODE", opcode).replace("HOW", how), 8).by_kind() == {
        "all-reduce": {"count": 1, "bytes": ARRAY, "wire_bytes": ARRAY * 7 // 4}}


def test_a_loop_without_a_trip_count_is_named_and_counts_once():
    found = traffic(PROGRAM.replace('"known_trip_count":{"n":"7"}', ""), 8)
    assert found.unknown_loops == ("while.2",)
    assert found.by_kind()["all-gather"]["count"] == 3 + 1


def test_slices_are_told_apart():
    found = traffic(PROGRAM, 8, lambda device: device // 4)
    assert found.wire_bytes(crossing=True) == 0 and found.wire_bytes(crossing=False) > 0
    found = traffic(PROGRAM, 8, lambda device: device % 2)
    assert {one.kind for one in found.collectives if not one.crosses} == set()


BETWEEN_SLICES = """
ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %token = token[] after-all()
  %send = (f32[8,4]{1,0}, u32[], token[]) send(%x, %token), channel_id=2, is_host_transfer=true, """ \
    """frontend_attributes={_xla_megascale_target="{SLICES}x{0:3}",_xla_megascale_transfer_type="KIND"}
  %recv = (f32[8,4]{1,0}, u32[], token[]) recv(%token), channel_id=1, is_host_transfer=true, """ \
    """frontend_attributes={_xla_megascale_target="{SLICES}x{0:3}",_xla_megascale_transfer_type="KIND"}
  ROOT %y = f32[8,4]{1,0} get-tuple-element(%recv), index=0
}
"""


@pytest.mark.parametrize("kind, slices, name, size, sent", [
    ("ALL_REDUCE", "1,2", "all-reduce", ARRAY, ARRAY), ("ALL_REDUCE", "0:3", "all-reduce", ARRAY, ARRAY * 3 // 2),
    ("ALL_GATHER", "1,2", "all-gather", 2 * ARRAY, ARRAY), ("REDUCE_SCATTER", "1:2,5:6", "reduce-scatter", ARRAY, 96),
    ("ONE_TO_ONE", "1,2", "collective-permute", ARRAY, ARRAY)])
def test_what_is_sent_to_other_slices(kind, slices, name, size, sent):
    found = traffic(BETWEEN_SLICES.replace("KIND", kind).replace("SLICES", slices), 16)
    assert found.by_kind() == {name: {"count": 1, "bytes": size, "wire_bytes": sent}}
    assert found.wire_bytes(crossing=True) == sent and found.wire_bytes(crossing=False) == 0


def test_a_text_that_is_no_program():
    with pytest.raises(ValueError, match="no entry computation"):
        parse("HloModule nothing")


@pytest.mark.parametrize("attributes, groups", [
    ("replica_groups={{0,2},{1,3}}, to_apply=%sum", [[0, 2], [1, 3]]),
    ("channel_id=1, replica_groups=[2,2]<=[4], dimensions={0}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x={}", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("replica_groups=@mesh_1['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    ("source_target_pairs={{0,1},{1,2},{3,0}}, x={}", [[0, 1], [1, 2], [3, 0]]),
    ("replica_groups={}, to_apply=%sum", [[0, 1, 2, 3]]),
    ("to_apply=%sum", [[0, 1, 2, 3]])])
def test_notations_of_groups(attributes, groups):
    assert list(_groups(attributes, 4)) == groups


@given(st.permutations([2, 3, 4]), st.permutations([0, 1, 2]))
def test_groups_share_out_the_devices(dims, order):
    size = dims[order[-1]]
    text = f"replica_groups=[{24 // size},{size}]<=[{','.join(map(str, dims))}]T({','.join(map(str, order))})"
    groups = list(_groups(text, 24))
    assert sorted(device for group in groups for device in group) == list(range(24))
    assert {len(group) for group in groups} == {size}


@pytest.mark.parametrize("text, size", [
    ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 2048), ("f32[]{:T(128)}", 4), ("pred[3]", 3), ("s4[4]", 4),
    ("f8e4m3fn[5]", 5), ("(s32[], /*index=1*/f32[2,<=3]{1,0})", 28), ("token[]", 1)])
def test_bytes_of_types(text, size):
    assert type_bytes(text) == size


def mesh():
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def array(shape, *spec):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh(), P(*spec)))


def test_a_sum_over_devices_in_a_scan_of_five():
    @functools.partial(jax.shard_map, mesh=mesh(), in_specs=P("a"), out_specs=P("a"))
    def run(x):
        return jax.lax.scan(lambda c, _: (c + jax.lax.psum(c, "a") / 2, None), x, None, length=5)[0]

    text = jax.jit(run).lower(array((8, 16), "a")).compile().as_text()
    each = 2 * 16 * 4
    assert traffic(text, 8).by_kind() == {
        "all-reduce": {"count": 5, "bytes": 5 * each, "wire_bytes": 5 * each * 2 * 3 // 4}}


def test_a_weight_that_is_gathered():
    rows = NamedSharding(mesh(), P(("a", "b")))
    program = jax.jit(lambda x, w: x @ w, out_shardings=rows)
    text = program.lower(array((16, 64), ("a", "b")), array((64, 32), ("a", "b"))).compile().as_text()
    whole = 64 * 32 * 4
    assert traffic(text, 8).by_kind() == {
        "all-gather": {"count": 1, "bytes": whole, "wire_bytes": whole * 7 // 8}}
