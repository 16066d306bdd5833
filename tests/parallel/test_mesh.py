"""The mesh from one line of text, and everything that can be wrong with the line."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from mtp_jax.parallel import AXES, check_batch, make_mesh, parse_mesh


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
