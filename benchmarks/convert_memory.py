"""Question: does converting a model take no more host memory than its largest stacked array and a constant?

Makes a workdir with a model of at least 400 MB (fp32), converts it to hf and that to a workdir again by the command,
and does the same with a tiny model of as many layers. `peak` is the most that the command's process had in memory at
any time since its birth, imports included, and `growth` what it is more than the tiny model's. `largest` is the largest
array of the checkpoint: a stack of layers, which is read as one. The target: growth of at most `largest` and 300 MB.

    python -m benchmarks.convert_memory [--d_model=1024] [--num_layers=8] [--directory=DIR]

Prints one JSON line a case. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
ALLOWED_BYTES = 300e6
TINY = 64  # D of the model that is compared with
CASES = (("workdir", "hf"), ("hf", "workdir"))


def make(folder: pathlib.Path, d_model: int, num_layers: int) -> dict[str, int]:
    """Writes a workdir with random parameters, array by array; returns the bytes of all and of the largest."""
    import numpy as np

    from mtp_jax.checkpoints.structure import Leaf, flatten
    from mtp_jax.config import ConvertConfig, ModelConfig
    from mtp_jax.convert import workdir
    from mtp_jax.convert.model import Model
    from mtp_jax.data.tokenizer import ByteTokenizer
    from mtp_jax.model import ModelSpec

    config = ModelConfig(num_heads=2, num_layers=num_layers, d_model=d_model, num_attention_heads=8, vocab_size=259)
    leaves = {path: Leaf(tuple(leaf.shape), np.dtype(leaf.dtype))
              for path, leaf in flatten(ModelSpec.create(config).shapes).items()}
    random = np.random.default_rng(0)

    def read(path: str, index: tuple[int, ...]) -> np.ndarray:
        return random.standard_normal(leaves[path].shape[len(index):], np.float32)

    folder.mkdir(parents=True)
    workdir.write(Model(config, leaves, read, 256, ByteTokenizer()), folder,
                  ConvertConfig(src="made", dst=str(folder), dst_format="workdir"))
    found = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values()]
    return {"bytes": sum(found), "largest": max(found)}


def convert(src: pathlib.Path, dst: pathlib.Path, src_format: str, dst_format: str) -> tuple[float, int]:
    """Runs the command; returns its seconds and its peak of memory, bytes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mtp_jax.convert", f"--src={src}", f"--dst={dst}", f"--src_format={src_format}",
         f"--dst_format={dst_format}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"converting {src} to {dst_format} failed with status {status}")
    return round(time.perf_counter() - start, 2), usage.ru_maxrss * 1024


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--d_model", type=int, default=1024)
    parser.add_argument("--num_layers", type=int, default=8)
    parser.add_argument("--directory", default=None, help="Where the models are written; default: the system's.")
    parser.add_argument("--make", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        print(json.dumps(make(pathlib.Path(arguments.make), arguments.d_model, arguments.num_layers)))
        return
    base = pathlib.Path(tempfile.mkdtemp(prefix="convert_memory-", dir=arguments.directory))
    try:
        for name, d_model in (("tiny", TINY), ("large", arguments.d_model)):
            # In a process of its own: a child's peak begins with the size of the process that started it.
            made = subprocess.run([sys.executable, "-m", "benchmarks.convert_memory", f"--make={base / name / '0'}",
                                   f"--d_model={d_model}", f"--num_layers={arguments.num_layers}"], cwd=ROOT, text=True,
                                  stdout=subprocess.PIPE, check=True)
            facts = json.loads(made.stdout.splitlines()[-1])
        for number, (src_format, dst_format) in enumerate(CASES):
            (_, tiny), (seconds, peak) = (convert(base / name / str(number), base / name / str(number + 1), src_format,
                                                  dst_format) for name in ("tiny", "large"))
            growth = peak - tiny
            print(json.dumps({
                "benchmark": "convert_memory", "case": f"{src_format} to {dst_format}", **facts, "seconds": seconds,
                "peak": peak, "growth": growth, "growth_over_largest": round(growth / facts["largest"], 2),
                "growth_over_bytes": round(growth / facts["bytes"], 2),
                "ok": growth <= facts["largest"] + ALLOWED_BYTES}), flush=True)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
