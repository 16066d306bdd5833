"""Many processes that are one run: how they find each other, agree, and end."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from absl import logging

import mtp_jax
from mtp_jax.config import Config, ParallelConfig, dumps
from mtp_jax.parallel import rendezvous

Result = TypeVar("Result")


class ProcessLost(Exception):
    """Another process of the run is gone, or cannot be reached."""


class OutOfMemory(Exception):
    """A device has too little memory for the run."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A process's place in a run of several.

    Attributes:
      address: HOST:PORT of process 0.
      num_processes: how many there are.
      process_id: this one's number, from 0.
      local_device_ids: of its machine's GPUs those that are its own; None: all.
    """

    address: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None


def start(parallel: ParallelConfig, *, coordinator_address: str = "", num_processes: int = 0, process_id: int = -1,
          facts: Mapping[str, str] | None = None) -> bool:
    """Joins this process to the others of its run; call it before JAX touches a device.

    Where no other process is meant, neither by arguments nor by the environment, nothing happens.

    Args:
      parallel: holds the time limits.
      coordinator_address: HOST:PORT of process 0; empty: as the environment says.
      num_processes: of the run; 0: as the environment says; 1: a run of its own, whatever the environment says.
      process_id: this one's number, from 0; -1: as the environment says.
      facts: texts that must be the same on all processes, see `facts_of`.

    Returns:
      Whether this process is one of several.

    Raises:
      ValueError: the place in the run cannot be told, or the processes do not run the same; names them.
      TimeoutError: the others were not there in time; names them.
      OSError: process 0 cannot listen on its port.
    """
    parallel.validate()
    place = find_place(coordinator_address=coordinator_address, num_processes=num_processes, process_id=process_id)
    if place is None:
        return False
    limit = parallel.start_timeout_seconds
    member = rendezvous.Member(place.process_id, host_name(), facts or {})
    rendezvous.meet(place.address, place.num_processes, member, timeout_seconds=limit)
    if place.process_id > 0:  # JAX would try again only after a second
        rendezvous.wait_for_port(*rendezvous.split_address(place.address), time.monotonic() + limit).close()
    import jax

    jax.distributed.initialize(
        place.address, place.num_processes, place.process_id, cluster_detection_method="deactivate",
        local_device_ids=place.local_device_ids, initialization_timeout=limit,
        heartbeat_timeout_seconds=parallel.heartbeat_timeout_seconds,
        shutdown_timeout_seconds=max(60, parallel.heartbeat_timeout_seconds))  # the first may still draw its plots
    jax.devices()  # all are needed for it: now, while none can be held up by an error of its own
    if place.process_id > 0:
        logging.set_verbosity(logging.WARNING)  # process 0 speaks for all
    return True


def find_place(*, coordinator_address: str = "", num_processes: int = 0, process_id: int = -1) -> Place | None:
    """Returns this process's place in a run of several, or None for a run of one; see `start`.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID stand for arguments that are not given, and for what
    these leave open Cloud TPU, GKE, Kubernetes, SLURM and Open MPI are asked as JAX asks them.

    Raises:
      ValueError: a part is missing; names it.
    """
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    count = num_processes or _number("JAX_NUM_PROCESSES", 0)
    number = process_id if process_id >= 0 else _number("JAX_PROCESS_ID", -1)
    if count == 1:
        return None
    local: tuple[int, ...] | None = None
    if not address or not count or number < 0:
        found = _cluster()
        if found is None and not address and not count and number < 0:
            return None
        if found is not None:
            count = count or found.get_process_count()
            if count <= 1:
                return None
            number = number if number >= 0 else found.get_process_id()
            address = address or found.get_coordinator_address(
                timeout_secs=60, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"))
            own = None if _on_tpu() else found.get_local_process_id()
            local = None if own is None or "JAX_LOCAL_DEVICE_IDS" in os.environ else (own,)
    missing = [name for name, there in (("--coordinator_address", bool(address)), ("--num_processes", count > 0),
                                        ("--process_id", number >= 0)) if not there]
    if missing:
        raise ValueError(f"A run of several processes lacks {' and '.join(missing)}: give it, or set JAX_"
                         f"{missing[0].removeprefix('--').upper()}; --num_processes=1 makes this a run of its own.")
    if not 0 <= number < count:
        raise ValueError(f"--process_id={number} must lie from 0 to {count - 1}, below --num_processes={count}.")
    rendezvous.split_address(address)
    return Place(address, count, number, local)


def host_name() -> str:
    """Returns the name of this machine."""
    return platform.node() or socket.gethostname() or "unknown"


def own_name() -> str:
    """Returns this process's number and machine, to begin an error with; nothing in a run of one process."""
    import jax

    return f"process {jax.process_index()} of {jax.process_count()} ({host_name()}): " if _several() else ""


def facts_of(config: Config, workdir: str | os.PathLike[str]) -> dict[str, str]:
    """Returns what must be the same on all processes and is known before anything is read: config, code, versions."""
    place = os.fspath(workdir)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    return {"config": dumps(config), "--workdir": place if "://" in place else os.path.abspath(place),
            "mtp_jax": mtp_jax.__version__, "hash of mtp_jax's files": _code_hash(),
            "Python": platform.python_version(), **versions}


def check_agreement(facts: Mapping[str, str]) -> None:
    """Compares facts over all processes, each of which calls it.

    Args:
      facts: texts by name; `config` is the text of a config.json, of which the fields are compared.

    Raises:
      ValueError: on all processes alike: some differ; names the processes, the facts and their values.
    """
    if _several():
        texts = gather(json.dumps({"host": host_name(), "facts": dict(facts)}))
        rendezvous.check_agreement([rendezvous.Member(number, **json.loads(text)) for number, text in enumerate(texts)])


def together(action: Callable[[], Result]) -> Result:
    """Returns what `action` returns; where it fails on one process it fails on all, which then end together.

    Raises:
      ValueError: `action` raised ValueError or OSError on a process; names it.
      OSError: in a run of one process.
    """
    if not _several():
        return action()
    problem, result = "", None
    try:
        result = action()
    except (ValueError, OSError) as error:
        problem = str(error) or type(error).__name__
    found = [json.loads(text) for text in gather(json.dumps([host_name(), problem]))]
    texts = {text for _, text in found}
    if texts == {""}:
        return result  # type: ignore[return-value]
    if len(texts) == 1:
        raise ValueError(texts.pop())
    raise ValueError("\n".join(f"On process {number} ({host}): {text}" for number, (host, text) in enumerate(found)
                               if text))


def gather(text: str) -> list[str]:
    """Returns the texts of all processes, in their order; each calls it with its own."""
    import numpy as np
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data), np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Turns the runtime's error of a run of several processes into `ProcessLost`, and want of memory into its own."""
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        first = text.splitlines()[0][:300] if text else "no reason is given"
        if "RESOURCE_EXHAUSTED" in text:
            raise OutOfMemory(f"A device ran out of memory ({first}): lower data.batch_size, raise "
                              "compute.microbatches, set compute.remat='full', or spread the state over more devices "
                              "by parallel.mesh. `python -m mtp_jax.plan` tells before what fits.") from error
        if not _several() or text.startswith(("INVALID_ARGUMENT", "UNIMPLEMENTED")):  # of a program, not of a process
            raise
        raise ProcessLost("The devices of this run stopped working together, as they do when another process is gone: "
                          f"{first}\nStart all processes again: the run goes on from its last checkpoint.") from error


def leave(status: int) -> NoReturn | int:
    """Returns an exit status, or ends the process with it where others wait for this one and shall not.

    JAX would wait for them first, and they for this one.
    """
    if not _several():
        return status
    import jax

    if jax.process_index() == 0:
        time.sleep(1.0)  # the others lose the coordinator with this process, and may have a word to say themselves
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _several() -> bool:
    """Tells whether this process is one of several."""
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def _number(name: str, default: int) -> int:
    """Returns the number that an environment variable holds."""
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise ValueError(f"{name}={text!r} must be a number.")
    return int(text)


def _cluster() -> Any:
    """Returns JAX's description of the cluster that this process runs in, or None.

    Which clusters there are and how they are told is JAX's own, and no public function says it without a start.
    """
    from jax._src.clusters import ClusterEnv

    for kind in ClusterEnv._cluster_types:
        if kind.opt_in_only_method or (kind.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ):
            continue  # a pod that is no part of an indexed job, such as a notebook, stands alone
        if kind.__name__ == "OmpiCluster" and "OMPI_MCA_orte_hnp_uri" not in os.environ:
            continue  # Open MPI 5: of no use to JAX 0.10, and 0.12 wants mpi4py for it
        try:
            if kind.is_env_present():
                return kind
        except OSError as error:
            raise ValueError(f"The metadata of this Cloud TPU machine cannot be read ({error}): set "
                             "TPU_SKIP_MDS_QUERY=1 where it is one machine alone, or give --coordinator_address, "
                             "--num_processes and --process_id.") from error
    return _OpenMPI if _number("OMPI_COMM_WORLD_SIZE", 1) > 1 else None


class _OpenMPI:
    """Open MPI 5, which no longer tells its launcher's address, by which JAX knows it."""

    @staticmethod
    def get_process_count() -> int:
        return _number("OMPI_COMM_WORLD_SIZE", 1)

    @staticmethod
    def get_process_id() -> int:
        return _number("OMPI_COMM_WORLD_RANK", -1)

    @staticmethod
    def get_local_process_id() -> int:
        return _number("OMPI_COMM_WORLD_LOCAL_RANK", 0)

    @staticmethod
    def get_coordinator_address(**_: Any) -> str:
        raise ValueError("This Open MPI does not tell where process 0 runs: give --coordinator_address=HOST:PORT, or "
                         "mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT.")


def _on_tpu() -> bool:
    """Tells whether this is a Cloud TPU machine, of which every process has all chips."""
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    return running_in_cloud_tpu_vm


def _code_hash() -> str:
    """Returns a hash of the package's source files."""
    found, root = hashlib.sha256(), pathlib.Path(mtp_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]
