"""On eight devices a step, and decoding, are those of one device: meshes x head kinds x n.

The slow suite holds a pairwise cover, and every mesh of eight devices; the fast one half of the cover.
"""

import itertools
import math

import pytest

from mtp_jax.parallel import AXES
from tests.parallel.equality import (
    HEADS,
    KINDS,
    LOOPED,
    OWN_FROM_2,
    assert_decoding_equals_unsharded,
    assert_step_equals_unsharded,
    fits,
    pairs_of,
    pairwise,
    spec_of,
)

MESHES = ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"sequence": 8}, {"data": 2, "fsdp": 2, "sequence": 2},
          {"fsdp": 2, "sequence": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2, "pred_heads": 2},
          {"data": 2, "sequence": 2, "pred_heads": 2})
DECODING_MESHES = ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2, "pred_heads": 2})
EXECUTION = {"remat": ("none", "full"), "microbatches": (1, 2), "attention": ("auto", "xla"),
             "run_heads": ("auto", "vmap")}


def product(meshes, kinds=KINDS, **execution):
    """Returns every cell {factor: setting} in which the mesh can carry the heads and the rows."""
    cells = [dict(zip(("mesh", "kind", "heads", *execution), settings))
             for settings in itertools.product(range(len(meshes)), kinds, HEADS, *execution.values())]
    return [cell for cell in cells if fits(meshes[cell["mesh"]], cell["kind"], cell["heads"])
            and (cell.get("run_heads") != "vmap" or cell["kind"] in ("parallel", "linear"))]


def cases(meshes, cells):
    """Returns a parameter of pytest for each cell."""
    return [pytest.param(spec_of(meshes[cell["mesh"]]), cell, id="-".join(
        [spec_of(meshes[cell["mesh"]]), *(str(value) for name, value in cell.items() if name != "mesh")]))
        for cell in cells]


def every_mesh():
    """Returns every way to write 8 as a product over the axes that these heads and this row can be split by."""
    powers = (powers for powers in itertools.product(range(4), repeat=len(AXES)) if sum(powers) == 3)
    meshes = [{axis: 2 ** power for axis, power in zip(AXES, powers) if power} for powers in powers]
    # 4 KV heads, 4 prediction heads at most.
    return [mesh for mesh in meshes if mesh.get("tensor", 1) <= 4 and mesh.get("pred_heads", 1) <= 4]




def half(found):
    """Returns the cases of a cover, every second one for the slow suite."""
    return [pytest.param(*case.values, id=case.id, marks=pytest.mark.slow if number % 2 else ())
            for number, case in enumerate(found)]


COVER = pairwise(product(MESHES, **EXECUTION))
DECODING_COVER = pairwise(product(DECODING_MESHES))
FEW = [{"mesh": 4, "kind": kind, "heads": 4, "remat": "full", "microbatches": 2} for kind in OWN_FROM_2]
LOOPS = [{"mesh": mesh, "kind": LOOPED, "heads": 4, "remat": remat, "microbatches": 2}
         for mesh, remat in ((6, "full"), (4, "full"), (1, "none"), (2, "none"))]
DECODING_FEW = [{"mesh": 1, "kind": kind, "heads": 4} for kind in OWN_FROM_2]
EVERY = every_mesh()
EVERY_DECODING = [mesh for mesh in EVERY if "sequence" not in mesh]


@pytest.mark.parametrize("mesh, cell", half(cases(MESHES, COVER)) + cases(MESHES, FEW))
def test_a_step_is_that_of_one_device(mesh, cell, x64):
    assert_step_equals_unsharded(**{**cell, "mesh": mesh})


@pytest.mark.parametrize("mesh, cell", [
    pytest.param(*case.values, id=case.id, marks=pytest.mark.slow if number else ())
    for number, case in enumerate(cases(MESHES, LOOPS))])
def test_a_step_of_a_looped_trunk_is_that_of_one_device(mesh, cell, x64):
    assert_step_equals_unsharded(**{**cell, "mesh": mesh})


@pytest.mark.parametrize("mesh, cell", half(cases(DECODING_MESHES, DECODING_COVER)) + cases(
    DECODING_MESHES, DECODING_FEW))
def test_decoding_is_that_of_one_device(mesh, cell, x64):
    assert_decoding_equals_unsharded(**{**cell, "mesh": mesh})


@pytest.mark.slow
@pytest.mark.parametrize("mesh, cell", cases(EVERY, product(EVERY, KINDS + OWN_FROM_2)))
def test_a_step_is_that_of_one_device_on_every_mesh(mesh, cell, x64):
    assert_step_equals_unsharded(**{**cell, "mesh": mesh})


@pytest.mark.slow
@pytest.mark.parametrize("mesh, cell", cases(EVERY_DECODING, product(EVERY_DECODING, KINDS + OWN_FROM_2)))
def test_decoding_is_that_of_one_device_on_every_mesh(mesh, cell, x64):
    assert_decoding_equals_unsharded(**{**cell, "mesh": mesh})


@pytest.mark.parametrize("meshes, execution, cover, least", [
    (MESHES, EXECUTION, COVER, 24), (DECODING_MESHES, {}, DECODING_COVER, 12)])
def test_the_cover_is_pairwise(meshes, execution, cover, least):
    """Every mesh meets every kind and every n that it can carry, every kind every n, and so on."""
    cells = product(meshes, **execution)
    assert set().union(*map(pairs_of, cover)) == set().union(*map(pairs_of, cells))
    assert least <= len(cover) < len(cells) / 2
    settings = {name: {cell[name] for cell in cover} for name in cells[0]}
    assert settings["kind"] == set(KINDS) and settings["heads"] == set(HEADS)
    wanted = [(i, kind) for i, mesh in enumerate(meshes) for kind in KINDS if fits(mesh, kind, 4)]
    assert {(cell["mesh"], cell["kind"]) for cell in cover} == set(wanted)
    assert {(cell["kind"], cell["heads"]) for cell in cover} == set(itertools.product(KINDS, HEADS))


def test_every_mesh_is_one_of_eight_devices():
    assert all(math.prod(mesh.values()) == 8 for mesh in EVERY) and len(EVERY) == math.comb(3 + 4, 4) - 2
    assert all({axis: mesh[axis] for axis in AXES if axis in mesh} in EVERY for mesh in MESHES)
