"""Where a process learns its place in a run: from flags, from JAX_*, from the cluster. There is no second process."""

import dataclasses
import os
import re

import jax
import pytest
from jax._src import cloud_tpu_init
from jax._src.clusters import cloud_tpu_cluster, cluster

import mtp_jax
from mtp_jax import config as configs
from mtp_jax.parallel import distributed
from mtp_jax.parallel.distributed import Place, find_place

SLURM = {"SLURM_JOB_ID": "1000", "SLURM_STEP_NODELIST": "gpu[017-020],big", "SLURM_NTASKS": "8", "SLURM_PROCID": "5",
         "SLURM_LOCALID": "1"}
OPEN_MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.net,w-1.net,w-2.net,w-3.net", "TPU_WORKER_ID": "2"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "s0-w0.net:8080"}


@pytest.fixture
def set_environment(monkeypatch):
    """Sets these variables, and none of a cluster beside them."""
    for name in list(os.environ):
        if re.match("SLURM_|OMPI_|TPU_|MEGASCALE_|JAX_(COORDINATOR|NUM_PROC|PROCESS)|KUBERNETES_|JOB_COMPLETION", name):
            monkeypatch.delenv(name)

    def set_(values, *, tpu=False):
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        if tpu:
            for module in (cloud_tpu_init, cloud_tpu_cluster, cluster):
                monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
            monkeypatch.setattr(cloud_tpu_cluster.socket, "gethostbyname", lambda name: "10.0.0.1")
            monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # GKE: the environment holds everything
            monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value_from_metadata", lambda key: None)

    return set_


@pytest.mark.parametrize("values, tpu, place", [
    ({}, False, None),
    (SLURM, False, Place(f"gpu017:{1000 % 4096 + 61440}", 8, 5, (1,))),
    ({**SLURM, "SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False, None),
    ({name: SLURM[name] for name in SLURM if name != "SLURM_STEP_NODELIST"}, False, None),  # sbatch's own script
    (OPEN_MPI, False, Place(f"10.96.0.1:{1531576320 // 4096 % 4096 + 61440}", 4, 2, (0,))),
    ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, False, None),
    (GKE, False, None),  # planned for there, on a machine without TPU
    (GKE, True, Place("w-0.net:8482", 4, 2)),
    ({**GKE, **SLICES}, True, Place("s0-w0.net:8482", 8, 6)),
    ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, True, None),
    ({**GKE, "JAX_COORDINATOR_PORT": "9000"}, True, Place("w-0.net:9000", 4, 2)),
    ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}, False, Place("a:1", 3, 2)),
    ({**SLURM, "JAX_COORDINATOR_ADDRESS": "a:1"}, False, Place("a:1", 8, 5, (1,))),
    ({**SLURM, "JAX_LOCAL_DEVICE_IDS": "0,1"}, False, Place("gpu017:62440", 8, 5)),
    ({**SLURM, "JAX_NUM_PROCESSES": "1"}, False, None),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False, None),  # a notebook in a cluster
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
      "JAX_COORDINATOR_ADDRESS": "a:1"}, False, Place("a:1", 2, 1, (1,))),
])
def test_the_place_is_read_from_the_environment(values, tpu, place, set_environment):
    set_environment(values, tpu=tpu)
    assert find_place() == place


@pytest.mark.parametrize("hosts, place", [("a,b,c,d", Place("a:8482", 4, 3)), ("a", None),
                                          ("n0:0:10.0.0.4,n1:1:10.0.0.5", Place("10.0.0.4:8482", 2, 3 % 2))])
def test_the_place_is_read_from_the_metadata_of_cloud_tpu(hosts, place, set_environment, monkeypatch):
    set_environment({}, tpu=True)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    number = "0" if place is None else str(place.process_id)
    told = {"agent-worker-number": (number, 200), "worker-network-endpoints": (hosts, 200)}
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", told.__getitem__)
    assert find_place() == place


def test_metadata_that_cannot_be_read_are_told(set_environment, monkeypatch):
    def unreachable(key):
        raise ConnectionError("metadata.google.internal")

    set_environment({}, tpu=True)
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", unreachable)
    with pytest.raises(ValueError, match="TPU_SKIP_MDS_QUERY=1 where it is one machine alone"):
        find_place()


def test_flags_go_before_the_environment(set_environment):
    set_environment({**SLURM, "JAX_COORDINATOR_ADDRESS": "a:1"})
    assert find_place(coordinator_address="b:2", num_processes=4, process_id=0) == Place("b:2", 4, 0)
    assert find_place(num_processes=1) is None


@pytest.mark.parametrize("values, flags, message", [
    ({}, {"coordinator_address": "a:1"}, "lacks --num_processes and --process_id: give it, or set JAX_NUM_PROCESSES"),
    ({}, {"num_processes": 2, "process_id": 0}, "lacks --coordinator_address"),
    ({}, {"coordinator_address": "a", "num_processes": 2, "process_id": 0}, "'a' must be HOST:PORT"),
    ({}, {"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2 must lie from 0 to 1"),
    ({"JAX_NUM_PROCESSES": "two"}, {}, "JAX_NUM_PROCESSES='two' must be a number"),
    ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, {}, "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"),
])
def test_a_place_that_cannot_be_told_is_refused(values, flags, message, set_environment):
    set_environment(values)
    with pytest.raises(ValueError, match=re.escape(message)):
        find_place(**flags)


def test_a_run_of_one_starts_nothing(set_environment):
    set_environment({})
    assert distributed.start(configs.ParallelConfig()) is False
    assert distributed.own_name() == ""
    distributed.check_agreement({"config": "not read"})
    assert distributed.together(lambda: 3) == 3
    with pytest.raises(FileNotFoundError):
        distributed.together(lambda: open("/no/such/file"))
    assert distributed.leave(75) == 75


def test_time_limits_are_checked_first():
    wrong = dataclasses.replace(configs.ParallelConfig(), start_timeout_seconds=0)
    with pytest.raises(ValueError, match="parallel.start_timeout_seconds"):
        distributed.start(wrong, coordinator_address="a:1", num_processes=2, process_id=0)


def test_facts_tell_the_code_the_versions_and_the_folder(tmp_path, monkeypatch):
    facts = distributed.facts_of(configs.Config(), "runs/x")
    assert facts["--workdir"] == os.path.abspath("runs/x") and facts["mtp_jax"] == mtp_jax.__version__
    assert distributed.facts_of(configs.Config(), "gs://b/x")["--workdir"] == "gs://b/x"
    assert {"config", "jax", "jaxlib", "Python"} < facts.keys()
    package = tmp_path / "mtp_jax"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "data" / "x.py").write_text("a = 1\n")
    monkeypatch.setattr(mtp_jax, "__file__", str(package / "__init__.py"))
    first = distributed.facts_of(configs.Config(), "x")
    (package / "data" / "x.py").write_text("a = 2\n")
    changed = distributed.facts_of(configs.Config(), "x")
    assert {name for name in first if first[name] != changed[name]} == {"hash of mtp_jax's files"}


@pytest.mark.parametrize("text, several, kind, message", [
    ("RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 17.20G of 15.75G\nmore", True, distributed.OutOfMemory,
     "(RESOURCE_EXHAUSTED: Ran out of memory in hbm. Used 17.20G of 15.75G): lower data.batch_size"),
    ("RESOURCE_EXHAUSTED: Out of memory", False, distributed.OutOfMemory, "compute.remat='full'"),
    ("UNKNOWN: Gloo AllReduce failed: Connection closed by peer", True, distributed.ProcessLost,
     "another process is gone: UNKNOWN: Gloo"),
    ("UNKNOWN: something", False, jax.errors.JaxRuntimeError, "UNKNOWN: something"),
    ("INVALID_ARGUMENT: Mosaic failed", True, jax.errors.JaxRuntimeError, "Mosaic failed")])
def test_the_runtime_s_errors_are_told_apart(text, several, kind, message, monkeypatch):
    monkeypatch.setattr(distributed, "_several", lambda: several)
    with pytest.raises(kind) as caught, distributed.noticing_loss():
        raise jax.errors.JaxRuntimeError(text)
    assert caught.type is kind and message in str(caught.value)
