"""One of two processes that save and restore together: `python process_worker.py PROCESS ADDRESS DIRECTORY`."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def main() -> None:
    process, address, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, process)
    from etils import epath

    from mtp_jax.checkpoints import Checkpointer
    from mtp_jax.config import CheckpointConfig

    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))
    shardings = {"w": split, "step": whole}
    state_at = jax.jit(lambda k: {"w": jnp.arange(64.0) * k, "step": k}, out_shardings=shardings)
    advance = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    abstract = {"w": jax.ShapeDtypeStruct((64,), jnp.float32, sharding=split),
                "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)}

    def check(restored, step):
        assert restored.step == step and restored.extra["row"] == step
        for shard in restored.state["w"].addressable_shards:
            assert np.array_equal(shard.data, (np.arange(64.0) * step)[shard.index])

    checkpointer = Checkpointer(directory, CheckpointConfig(keep_last=2))
    assert checkpointer.restore(abstract) is None
    for step in (1, 2, 3):
        state = state_at(jnp.int32(step))
        checkpointer.save(step, state, {"row": step})
        advance(state)
    check(checkpointer.restore(abstract), 3)
    if process == 0:
        (epath.Path(directory) / "3" / "state" / "array_metadatas" / "process_1").unlink()
    multihost_utils.sync_global_devices("damaged")
    check(checkpointer.restore(abstract), 2)
    checkpointer.save(3, state_at(jnp.int32(3)), {"row": 3})
    check(checkpointer.restore(abstract), 3)
    checkpointer.close()
    print(f"steps {checkpointer.steps()}", flush=True)


if __name__ == "__main__":
    main()
