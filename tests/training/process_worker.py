"""One of the processes of a run; started by processes.py.

The ids of every step's global batch, gathered from all processes, go to ids.jsonl in the workdir as a hash.
"""

import dataclasses
import hashlib
import json
import sys

import jax
import numpy as np


def record_ids(run):
    """Returns the run with a train step that notes the hash of each global batch before it takes it."""
    train_step = run.program.train_step

    def recorded(state, batch):
        from jax.experimental import multihost_utils

        with jax.transfer_guard("allow"):
            digest = hashlib.sha256()
            for name in ("tokens", "segments", "positions"):
                values = (multihost_utils.process_allgather(batch[name], tiled=True) if jax.process_count() > 1
                          else np.asarray(batch[name]))
                digest.update(np.ascontiguousarray(values, np.int32).tobytes())
            if jax.process_index() == 0:
                with (run.workdir / "ids.jsonl").open("a") as file:
                    file.write(json.dumps({"step": int(state.step) + 1, "ids": digest.hexdigest()}) + "\n")
        return train_step(state, batch)

    return dataclasses.replace(run, program=dataclasses.replace(run.program, train_step=recorded))


def train(corpus, workdir, changes):
    """Trains the small mixture of small_runs.py with its ids recorded; returns the exit status."""
    from mtp_jax.training import prepare
    from tests.training.small_runs import mixed

    return record_ids(prepare.prepare(mixed(corpus, **changes), workdir)).train()


def interleave_devices():
    """Deals the devices out to the mesh as a TPU may: the first of every process, then the second of every process."""
    from jax.experimental import mesh_utils

    def create(shape, devices, **options):
        del options
        return np.array(sorted(devices, key=lambda device: (device.id % jax.local_device_count(),
                                                            device.process_index))).reshape(shape)

    mesh_utils.create_device_mesh = create


def main():
    task = json.loads(sys.argv[1])
    if task["processes"] > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(task["address"], num_processes=task["processes"], process_id=task["process"])
    if task["interleaved"]:
        interleave_devices()
    sys.exit(train(task["corpus"], task["workdir"], task["changes"]))


if __name__ == "__main__":
    main()
