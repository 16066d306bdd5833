"""Question: does converting a model take no more host memory than its largest stacked array and a constant?

Makes a workdir with a model of at least 400 MB (fp32), converts it to hf and that to a workdir again, each in a process
of its own, and does the same with a tiny model of as many layers. `growth` is the difference of VmHWM of
/proc/self/status, the most that a process had in memory at any time since its birth, imports included. `largest` is the
largest array of the checkpoint: a stack of layers, which is read and written as one. The target: growth of at most
`largest` and 300 MB.

    python -m benchmarks.convert_memory [--d_model=1024] [--num_layers=8] [--directory=DIR]

Prints one JSON line a case. Linux only.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent
ALLOWED_BYTES = 300e6
TINY = 64  # D of the model that is compared with
CASES = (("workdir", "hf"), ("hf", "workdir"))


def make(folder: pathlib.Path, d_model: int, num_layers: int) -> None:
    """Writes a workdir with random parameters, array by array."""
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


def convert(src: pathlib.Path, dst: pathlib.Path, src_format: str, dst_format: str) -> dict[str, float]:
    """Converts in this process; returns what it took."""
    import time

    from mtp_jax.config import ConvertConfig
    from mtp_jax.convert import command, formats

    options = ConvertConfig(src=str(src), dst=str(dst), src_format=src_format, dst_format=dst_format)
    leaves = formats.get_format("--src_format", src_format, reads=True).read(src, options).leaves
    sizes = [_size(leaf.shape) * leaf.dtype.itemsize for leaf in leaves.values()]
    start = time.perf_counter()
    command.convert(options)
    return {"seconds": round(time.perf_counter() - start, 2), "bytes": sum(sizes), "largest": max(sizes),
            "peak": peak()}


def peak() -> int:
    """Returns VmHWM of this process, bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _in_a_process(*arguments: object) -> str:
    done = subprocess.run([sys.executable, "-m", "benchmarks.convert_memory", "--worker", *map(str, arguments)],
                          cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    return done.stdout


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--d_model", type=int, default=1024)
    parser.add_argument("--num_layers", type=int, default=8)
    parser.add_argument("--directory", default=None, help="Where the models are written; default: the system's.")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        what, *rest = arguments.worker
        if what == "make":
            make(pathlib.Path(rest[0]), int(rest[1]), int(rest[2]))
        else:
            print(json.dumps(convert(pathlib.Path(rest[0]), pathlib.Path(rest[1]), rest[2], rest[3])))
        return
    base = pathlib.Path(tempfile.mkdtemp(prefix="convert_memory-", dir=arguments.directory))
    try:
        for name, d_model in (("tiny", TINY), ("large", arguments.d_model)):
            _in_a_process("make", base / name / "0", d_model, arguments.num_layers)
        for number, (src_format, dst_format) in enumerate(CASES):
            tiny, large = (json.loads(_in_a_process(
                "convert", base / name / str(number), base / name / str(number + 1), src_format,
                dst_format).splitlines()[-1]) for name in ("tiny", "large"))
            growth = large["peak"] - tiny["peak"]
            print(json.dumps({
                "benchmark": "convert_memory", "case": f"{src_format} to {dst_format}", **large, "growth": growth,
                "growth_over_largest": round(growth / large["largest"], 2), "growth_over_bytes": round(
                    growth / large["bytes"], 2), "ok": growth <= large["largest"] + ALLOWED_BYTES}), flush=True)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
