"""Several processes train on a mixture what one does, and take over from one another in the middle of a run."""

import numpy as np
import pytest

from mtp_jax.training import signals
from tests.training import process_worker, processes
from tests.training.processes import STEPS, finish


@pytest.fixture(scope="module")
def unbroken(corpus, tmp_path_factory):
    """The workdir of a run of one process that nothing broke, on all devices of this one."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    changes = {**processes.settings(), "train__num_steps": STEPS}
    assert process_worker.train(corpus, workdir, changes) == signals.DONE
    return workdir


def assert_same(workdir, unbroken):
    """Checks that a run saw the same ids in the same order, and lost as much at every step."""
    assert processes.ids(workdir) == processes.ids(unbroken)
    got, want = processes.losses(workdir), processes.losses(unbroken)
    assert len(want) == STEPS + 2 and want.keys() <= got.keys()
    for key, values in want.items():
        np.testing.assert_allclose(got[key], values, rtol=0, atol=1e-5, err_msg=str(key))


def test_two_processes_train_what_one_does(corpus, tmp_path, unbroken):
    """In turns, the mesh takes the devices of both: the rows of a process lie apart."""
    finish(corpus, tmp_path / "run", "data:2,fsdp:2", processes=2, devices=2, interleaved=True)
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_two_processes_with_the_same_rows_go_on_where_one_stopped(corpus, tmp_path, unbroken):
    changes = {**processes.settings(), "train__num_steps": 8, "parallel__mesh": "data:2,fsdp:4"}
    assert process_worker.train(corpus, tmp_path / "run", changes) == signals.DONE
    finish(corpus, tmp_path / "run", "data:1,tensor:2", processes=2)
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("mesh, devices, interleaved", [
    ("data:4", 1, False), ("data:2,fsdp:2,tensor:2", 2, True), ("fsdp:2,sequence:2,pred_heads:2", 2, False),
    ("sequence:4,tensor:2", 2, False)])
def test_four_processes_train_what_one_does(corpus, tmp_path, unbroken, mesh, devices, interleaved):
    finish(corpus, tmp_path / "run", mesh, processes=4, devices=devices, interleaved=interleaved)
    assert_same(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("chain", [
    [(1, 4, "data:4"), (2, 2, "fsdp:2,tensor:2"), (4, 1, "data:2,sequence:2"), (1, 8, "data:2,fsdp:2,pred_heads:2")],
    [(4, 2, "fsdp:4,tensor:2"), (1, 1, "data:1"), (4, 1, "sequence:2,tensor:2"), (2, 1, "pred_heads:2")],
    [(2, 4, "data:2,fsdp:2,sequence:2"), (4, 2, "data:8"), (2, 1, "fsdp:2"), (4, 1, "pred_heads:2,tensor:2")]])
def test_meshes_and_process_counts_take_over_from_one_another(corpus, tmp_path, unbroken, chain):
    """(processes, devices of each, mesh), five steps each; in the second half worker processes form the batches."""
    for part, (count, devices, mesh) in enumerate(chain, start=1):
        finish(corpus, tmp_path / "run", mesh, processes=count, devices=devices, num_steps=5 * part,
               data__num_workers=0 if part < 3 else 1)
    assert_same(tmp_path / "run", unbroken)
