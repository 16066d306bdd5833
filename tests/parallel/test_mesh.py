"""The mesh from one line of text, and everything that can be wrong with the line."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from mtp_jax.config import ParallelConfig
from mtp_jax.parallel import AXES, Layout, check_batch, check_length, make_mesh, parse_dcn_mesh, parse_mesh
from tests.tpu_compiler import needs_tpu_compiler, run_with_tpu_compiler


@pytest.mark.parametrize("spec, num_devices, want", [
    ("data:-1,fsdp:1,tensor:1,pred_heads:1", 8, {"data": 8}),
    ("data:1", 1, {}),
    ("fsdp:-1", 6, {"fsdp": 6}),
    (" tensor:2 , data:-1", 8, {"data": 4, "tensor": 2}),
    ("data:2,fsdp:2,pred_heads:2", 8, {"data": 2, "fsdp": 2, "pred_heads": 2}),
    ("data:-1,sequence:2", 8, {"data": 4, "sequence": 2}),
    ("data:-1,tensor:8", 8, {"tensor": 8}),
])
def test_sizes(spec, num_devices, want):
    assert parse_mesh(spec, num_devices) == {**dict.fromkeys(AXES, 1), **want}
    assert list(parse_mesh(spec, num_devices)) == list(AXES)


@pytest.mark.parametrize("spec, message", [
    ("dta:8", 'unknown axis \'dta\'.*Did you mean "data"'),
    ("data:8,tensr:1", 'unknown axis \'tensr\'.*Did you mean "tensor"'),
    ("", "unknown axis ''.*the axes are"),
    ("data:8,", "unknown axis ''"),
    ("data:4,data:2", "names the axis 'data' twice"),
    ("data:-1,fsdp:-1", r"only one axis can be -1, got \['data', 'fsdp'\]"),
    ("data:two", "size of 'data' must be a positive number, or -1.*got 'two'"),
    ("data", "size of 'data' must be.*got ''"),
    ("data:", "size of 'data' must be.*got ''"),
    ("data:0", "size of 'data' must be.*got '0'"),
    ("data:-2", "size of 'data' must be.*got '-2'"),
    ("data:--1", "size of 'data' must be.*got '--1'"),
    ("data:2.5", "size of 'data' must be.*got '2.5'"),
    ("data:\u00b2", "size of 'data' must be.*got"),
    ("data:1_0", "size of 'data' must be.*got"),
    ("data:16", "needs 16 devices, there are 8: lower a size, or set one to -1"),
    ("data:2,tensor:2", "leaves 4 of 8 devices idle: raise a size, or set one to -1"),
    ("data:-1,tensor:3", "8 devices cannot be split by the 3 of the fixed axes"),
    ("data:-1,tensor:16", "8 devices cannot be split by the 16"),
])
def test_every_mistake_is_told_with_the_line_and_the_remedy(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_mesh(spec, 8)
    assert f"parallel.mesh={spec!r}" in str(error.value)


@given(st.text(alphabet="data:,-1fsp2 tensor8", max_size=20), st.integers(1, 16))
def test_any_line_gives_a_mesh_of_all_devices_or_names_the_field(spec, num_devices):
    try:
        sizes = parse_mesh(spec, num_devices)
    except ValueError as error:
        assert "parallel.mesh=" in str(error)
        return
    product = 1
    for size in sizes.values():
        product *= size
    assert product == num_devices


def test_make_mesh_has_all_axes_of_type_auto():
    mesh = make_mesh("data:2,tensor:-1")
    assert mesh.axis_names == AXES and dict(mesh.shape) == {**dict.fromkeys(AXES, 1), "data": 2, "tensor": 4}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sorted(d.id for d in mesh.devices.flat) == list(range(8))


def test_make_mesh_of_some_devices():
    assert make_mesh("data:-1", jax.devices()[2:3]).devices.flat[0] == jax.devices()[2]
    assert dict(make_mesh("fsdp:-1", jax.devices()[:2]).shape)["fsdp"] == 2
    with pytest.raises(ValueError, match="needs 4 devices, there are 2"):
        make_mesh("data:4", jax.devices()[:2])


def test_batch_that_does_not_spread():
    mesh = make_mesh("data:2,fsdp:2,tensor:2")
    check_batch(8, 2, mesh, ("data", "fsdp"))
    check_batch(3, 1, mesh, ())
    with pytest.raises(ValueError, match=r"data.batch_size=6 is not divisible by the 4 devices.*data 2 x fsdp 2.*of 4"):
        check_batch(6, 1, mesh, ("data", "fsdp"))
    with pytest.raises(ValueError, match="batch_size=8 in compute.microbatches=4 parts.*multiple of 16"):
        check_batch(8, 4, mesh, ("data", "fsdp"))


def test_length_that_does_not_spread():
    rules = Layout.create(make_mesh("sequence:2,tensor:2,data:2"), ParallelConfig().rules)
    check_length(12, rules.mesh, rules.rules)
    with pytest.raises(ValueError, match="data.seq_len=13 is not divisible by the 2 devices that the rule for 'length' "
                       ".*sequence 2.*choose a multiple of 2, another parallel.mesh"):
        check_length(13, rules.mesh, rules.rules)
    with pytest.raises(ValueError, match="seq_len=14 .* the 4 devices that the rule for 'residual'.*sequence 2 x ten"):
        check_length(14, rules.mesh, rules.rules)


class OnSlice:
    """A device of a slice, as a mesh sees it."""

    platform, device_kind, process_index = "abacus", "abacus", 0

    def __init__(self, number, slice_index):
        self.id, self.slice_index = number, slice_index

    def __repr__(self):
        return f"{self.id}@{self.slice_index}"


def devices_on(*sizes):
    """Returns devices on slices of these sizes, not in order."""
    devices = [OnSlice(i, number) for i, number in enumerate(n for n, size in enumerate(sizes) for _ in range(size))]
    return devices[::-1]


@pytest.mark.parametrize("spec, dcn, across", [
    ("data:-1", "", {"data": 2}),
    ("data:2,fsdp:4", "", {"data": 2}),
    ("data:4,tensor:2", "data:2", {"data": 2}),
    ("fsdp:8", "fsdp:-1", {"fsdp": 2}),
    ("fsdp:4,tensor:2", "tensor:1,fsdp:2", {"fsdp": 2}),
    ("data:2,sequence:4", "sequence:2", {"sequence": 2}),
])
def test_a_slice_is_one_block_of_the_axis_that_spans_slices(spec, dcn, across):
    mesh = make_mesh(spec, devices_on(4, 4), dcn)
    assert dict(mesh.shape) == parse_mesh(spec, 8)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    (axis,) = across
    halves = np.split(slices, 2, axis=AXES.index(axis))
    assert np.all(halves[0] == 0) and np.all(halves[1] == 1)
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


def test_two_axes_can_span_four_slices():
    mesh = make_mesh("data:4,fsdp:2", devices_on(2, 2, 2, 2), "data:2,fsdp:2")
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices).reshape(4, 2)
    assert slices.tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize("spec, dcn, sizes, message", [
    ("data:-1", "data:4", (4, 4), "parallel.dcn_mesh='data:4' needs 4 slices, there are 2"),
    ("data:-1", "data:1", (4, 4), "parallel.dcn_mesh='data:1' leaves 1 of 2 slices idle"),
    ("data:-1", "dta:2", (4, 4), "parallel.dcn_mesh='dta:2' names the unknown axis 'dta'"),
    ("data:-1", "data:2", (8,), "parallel.dcn_mesh='data:2' needs 2 slices, there are 1"),
    ("fsdp:-1", "", (4, 4), r"dcn_mesh is empty, so data spans the slices: the axis 'data' of size 1 .* be cut into 2 "
                            r"slices.*set parallel.dcn_mesh to one of \['fsdp:2'\]"),
    ("fsdp:4,tensor:2", "sequence:2", (4, 4), r"dcn_mesh='sequence:2': .*'sequence' of size 1 .*"
                                              r"one of \['fsdp:2', 'tensor:2'\]"),
    ("fsdp:4,tensor:3", "", (4, 4, 4), r"one of \['tensor:3'\]"),
    ("data:1,fsdp:5,tensor:2", "", (2,) * 5, r"one of \['fsdp:5'\]"),
    ("fsdp:2,tensor:2", "", (1,) * 4, "give an axis of parallel.mesh a multiple of 4"),
    ("data:-1", "", (4, 2), "lie unevenly on 2 slices"),
])
def test_every_mistake_about_slices_is_told_with_the_remedy(spec, dcn, sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(spec, devices_on(*sizes), dcn)


def test_one_slice_may_be_said():
    assert parse_dcn_mesh("data:1", parse_mesh("fsdp:8", 8), 1) == dict.fromkeys(AXES, 1)
    assert make_mesh("fsdp:-1", None, "data:-1").shape["fsdp"] == 8


SLICES = """
import numpy as np
from mtp_jax.parallel import AXES, make_mesh

for spec, dcn, axis in (("data:-1", "", "data"), ("data:2,fsdp:8", "", "data"), ("data:4,fsdp:2,tensor:2", "", "data"),
                        ("fsdp:8,tensor:2", "fsdp:2", "fsdp"), ("sequence:4,tensor:4", "sequence:2", "sequence")):
    mesh = make_mesh(spec, tpu_devices("v5e:2x4", slices=2), dcn)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    first, second = np.split(slices, 2, axis=AXES.index(axis))
    assert (first == 0).all() and (second == 1).all(), (spec, dcn)
# In a slice the devices follow the wires: neighbours on the last axis larger than 1 differ by one step.
coords = np.array([device.coords for device in make_mesh("fsdp:2,tensor:4", tpu_devices("v5e:2x4")).devices.flat])
steps = np.abs(np.diff(coords.reshape(2, 4, 3), axis=1)).sum(axis=-1)
assert (steps <= 3).all() and (steps == 1).mean() >= 0.5, coords
print("ordered")
"""


@needs_tpu_compiler
def test_slices_of_real_topologies():
    assert "ordered" in run_with_tpu_compiler(SLICES)
