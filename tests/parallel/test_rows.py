"""Rows that each process reads, however the mesh deals the devices of the processes out."""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest

from mtp_jax.config import ParallelConfig
from mtp_jax.parallel import Layout, make_mesh, put_rows, rows_of_processes
from mtp_jax.parallel.rows import local_part

B, L = 16, 8
ROOT = pathlib.Path(__file__).parent.parent.parent
LIBTPU = pathlib.Path(os.environ.get("TPU_LIBRARY_PATH") or pathlib.Path(sys.prefix) / "libtpu/libtpu/libtpu.so")


def batch_sharding(mesh, devices=None, shape=(B, L)):
    """Returns the sharding of a batch on a mesh."""
    return Layout.create(make_mesh(mesh, devices), ParallelConfig().rules).sharding(("batch", "length"), shape)


class Device(NamedTuple):
    """As much of a device as its rows depend on."""

    id: int
    process_index: int


class Dealt:
    """A sharding whose devices belong to other processes than they do: `owners` of the devices in their own order."""

    def __init__(self, sharding, owners):
        self.sharding, self.owners = sharding, owners

    def devices_indices_map(self, shape):
        return {Device(device.id, self.owners[device.id]): index
                for device, index in self.sharding.devices_indices_map(shape).items()}


def by_order(processes):
    """Returns the owners where every process has the next few devices."""
    return [device * processes // 8 for device in range(8)]


def assert_every_device_gets_its_rows(sharding, rows, shape=(B, L)):
    """Checks that the rows that each process reads are those that its devices hold, no more and no less."""
    batch = np.arange(np.prod(shape)).reshape(shape)
    held = {process: set() for process in rows}
    for device, index in sharding.devices_indices_map(shape).items():
        own = rows[device.process_index]
        local = batch[own]  # what the process reads
        part = local[local_part(index[0], own, shape[0]), index[1]]
        np.testing.assert_array_equal(part, batch[index])
        held[device.process_index] |= set(range(*index[0].indices(shape[0])))
    assert held == {process: set(own.tolist()) for process, own in rows.items()}
    assert set().union(*held.values()) == set(range(shape[0]))


@pytest.mark.parametrize("mesh, owners, first, last", [
    ("data:8", by_order(1), range(16), range(16)),
    ("data:8", by_order(2), range(8), range(8, 16)),
    ("data:2,fsdp:2,tensor:2", by_order(4), range(4), range(12, 16)),
    ("fsdp:2,tensor:4", by_order(4), range(8), range(8, 16)),  # processes 0 and 1 read the same
    ("tensor:8", by_order(4), range(16), range(16)),
    ("data:2,sequence:4", by_order(4), range(8), range(8, 16)),
    ("sequence:2,tensor:2,pred_heads:2", by_order(2), range(16), range(16)),
    ("data:8", [0, 1] * 4, [0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]),
    ("data:4,sequence:2", [0, 0, 1, 1] * 2, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])])
def test_rows_are_those_of_the_devices(mesh, owners, first, last):
    sharding = Dealt(batch_sharding(mesh), owners)
    rows = rows_of_processes(sharding, (B, L))
    assert list(rows[0]) == list(first) and list(rows[max(owners)]) == list(last)
    assert_every_device_gets_its_rows(sharding, rows)


@pytest.mark.parametrize("mesh, owners, message", [
    ("data:2,tensor:4", [0, 0, 0, 1, 1, 1, 2, 2], "over 3 processes: process 0 would read rows 0-7 and process 1 rows "
                                                  "0-15"),
    ("data:4,tensor:2", [0, 0, 0, 1, 1, 1, 2, 2], "process 0 would read rows 0-7 and process 1 rows 4-11"),
    ("data:8", [0, 0, 0, 1, 1, 1, 2, 2], "process 0 would read rows 0-5 and process 2 rows 12-15")])
def test_an_uneven_split_is_refused(mesh, owners, message):
    with pytest.raises(ValueError, match=r"parallel\.mesh does not share out the rows of data\.batch_size=16 evenly "
                                         rf".*{message}\. Choose data and fsdp"):
        rows_of_processes(Dealt(batch_sharding(mesh), owners), (B, L))


@pytest.mark.parametrize("mesh", ["data:8", "data:2,sequence:2,tensor:2", "sequence:4,pred_heads:2"])
def test_put_rows_makes_the_batch_in_any_order_of_devices(mesh):
    batch = np.arange(B * L, dtype=np.int32).reshape(B, L)
    sharding = batch_sharding(mesh, jax.devices()[::-1])
    made = put_rows(batch, sharding, np.arange(B), (B, L))
    np.testing.assert_array_equal(made, batch)
    assert made.sharding == sharding and made.dtype == np.int32


TOPOLOGIES = """
import os
from mtp_jax.parallel.topology import parse_topology, prepare_environment, topology_devices

prepare_environment(parse_topology("v5p:4x4x4"), os.environ)
from mtp_jax.parallel import rows_of_processes
from tests.parallel.test_rows import assert_every_device_gets_its_rows, batch_sharding

gaps = 0
for name, meshes in (("v5p:4x4x4", ["fsdp:16,tensor:4", "data:2,fsdp:32", "fsdp:8,sequence:2,tensor:2,pred_heads:2"]),
                     ("v5e:4x4", ["fsdp:16", "data:2,fsdp:2,tensor:4", "fsdp:8,tensor:2"])):
    devices = topology_devices(parse_topology(name))
    for mesh in meshes:
        shape = (64, 8)
        sharding = batch_sharding(mesh, devices, shape)
        rows = rows_of_processes(sharding, shape)
        assert sorted(rows) == sorted({device.process_index for device in devices})
        assert_every_device_gets_its_rows(sharding, rows, shape)
        gaps += any(len(own) < own[-1] - own[0] + 1 for own in rows.values())
print("meshes on which the rows of a process lie apart:", gaps)
"""


@pytest.mark.skipif(not LIBTPU.exists(), reason="needs the TPU compiler, no TPU; `make test` installs it")
def test_rows_on_the_processes_of_a_tpu():
    environment = {**os.environ, "TPU_LIBRARY_PATH": str(LIBTPU), "PYTHONPATH": str(ROOT),
                   "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", TOPOLOGIES], env=environment, capture_output=True, text=True,
                          timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lie apart: 3" in done.stdout
