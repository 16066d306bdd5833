"""Converting takes the memory of the largest array and its converted form, whatever the size of the model."""

import json
import subprocess
import sys

import pytest

FORMATS = {"hf": "parallel", "hf_parallel": "parallel", "hf_mtp": "sequential", "medusa": "medusa", "meta": "parallel",
           "fast_llm": "parallel", "gguf": "parallel", "stablehlo": "parallel", "workdir": "parallel"}
# Bytes: compiled programs, buffers, what libraries load when they are first used; Orbax compresses some arrays at once.
CONSTANTS = {"workdir": 250e6, "stablehlo": 80e6}
CONSTANT = 30e6
SCRIPT = """
import importlib, json, pathlib, sys, threading, time
import jax
import numpy as np
from mtp_jax.checkpoints.structure import Leaf, flatten
from mtp_jax.config import ConvertConfig, ModelConfig
from mtp_jax.convert.model import Model
from mtp_jax.model import ModelSpec

name, kind, folder = sys.argv[1:]
config = ModelConfig(num_heads=2, num_layers=14, d_model=768, num_attention_heads=8, vocab_size=8000, head_kind=kind)
leaves = {path: Leaf(tuple(leaf.shape), np.dtype(leaf.dtype))
          for path, leaf in flatten(ModelSpec.create(config).shapes).items()}
draw = np.random.default_rng(0)
model = Model(config, leaves, lambda path, index: draw.random(leaves[path].shape[len(index):], np.float32), 256)
module = importlib.import_module(f"mtp_jax.convert.{name}")
jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))
resident = lambda: 4096 * int(open("/proc/self/statm").read().split()[1])
before, seen, done = resident(), [0], threading.Event()

def watch():
    while not done.wait(0.002):
        seen.append(resident())

watcher = threading.Thread(target=watch)
watcher.start()
module.write(model, pathlib.Path(folder), ConvertConfig(src="run", dst=folder, dst_format=name))
done.set()
watcher.join()
sizes = [4 * int(np.prod(leaf.shape)) for leaf in leaves.values()]
arrays = [size // leaf.shape[0] if path.startswith(("trunk/", "heads/")) else size
          for size, (path, leaf) in zip(sizes, leaves.items())]
print(json.dumps({"model": sum(sizes), "array": max(arrays), "peak": max(seen) - before}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_memory(tmp_path, name):
    """A model of half a gigabyte is written with a fraction of that."""
    if name == "gguf":
        pytest.importorskip("gguf")
    done = subprocess.run([sys.executable, "-c", SCRIPT, name, FORMATS[name], str(tmp_path)], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {found['peak'] / 1e6:.0f} MB for {found['model'] / 1e6:.0f} MB")
    assert found["model"] > 400e6
    assert found["peak"] < 2 * found["array"] + CONSTANTS.get(name, CONSTANT)
