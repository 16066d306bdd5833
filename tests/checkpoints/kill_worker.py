"""A run that does nothing but save: `python kill_worker.py DIRECTORY LAST_STEP [MOMENT STEP]`.

It goes on from the newest checkpoint, checks that it holds what its step must hold, and saves every step until
LAST_STEP. MOMENT is a place in the save of STEP where the process kills itself: "manifest", "commit" or "delete".
"""

import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

SIZE = 100_000


def state_at(step: int) -> dict:
    """The state that step must hold."""
    state = {"step": np.int32(step), "params": {"w": np.full(SIZE, step, np.float32)},
             "opt_state": ({"mu": np.arange(10, dtype=np.float32) * step},)}
    return jax.tree.map(jnp.asarray, state)


def check(restored) -> None:
    """Exits with status 3 if the checkpoint does not hold what its step must hold."""
    want = state_at(restored.step)
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), restored.state, want)
    if not all(jax.tree.leaves(same)) or restored.extra["row"] != 10 * restored.step:
        print(f"WRONG {restored.step} {same}", flush=True)
        sys.exit(3)


def main() -> None:
    from mtp_jax.checkpoints import Checkpointer, integrity
    from mtp_jax.config import CheckpointConfig

    directory, last = sys.argv[1], int(sys.argv[2])
    moment, when = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else ("", 0)

    def die_at(function, here, *, first):
        def wrapped(*args, **kwargs):
            if not first:
                function(*args, **kwargs)
            if moment == here and args[0].name.split(".")[0] == str(when):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs) if first else None
        return wrapped

    write = integrity.write_manifest
    integrity.write_manifest = die_at(die_at(write, "manifest", first=True), "commit", first=False)
    if moment == "delete":  # the new one is committed, the old ones are about to go
        from orbax.checkpoint import path
        deleter = path.deleter.StandardCheckpointDeleter
        original = deleter.delete_steps

        def delete_steps(self, steps):
            if os.path.exists(os.path.join(directory, str(when))):
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, steps)
        deleter.delete_steps = delete_steps
    with Checkpointer(directory, CheckpointConfig(keep_last=1)) as checkpointer:
        restored = checkpointer.restore(jax.eval_shape(lambda: state_at(0)))
        start = 0
        if restored is not None:
            check(restored)
            start = restored.step
        print(f"from {start}", flush=True)
        for step in range(start + 1, last + 1):
            checkpointer.save(step, state_at(step), {"row": 10 * step})
            print(f"saved {step - 1}", flush=True)  # save() has waited for the one before


if __name__ == "__main__":
    main()
