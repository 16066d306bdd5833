"""Question: which topology does each of the paper's models need, and what does it send as the pod grows?

Runs `python -m mtp_jax.plan --experiment=paper`, the TPU compiler on the very train step, over three lists:

    target    7B at n = 1 and 4 with 2 rows a chip on 64 v5p chips; 13B on 128; 1.3B on 16 v5e chips
    sizes     each of the paper's sizes at its own batch, in microbatches, on a topology that holds it
    scaling   7B at 2 rows a chip on 64, 256 and 1024 v5p chips, growing either axis

    python -m benchmarks.plans [--only=target,sizes,scaling]

Needs libtpu (in TPU_LIBRARY_PATH, or pip install 'mtp_jax[tpu]') and no TPU. Prints one JSON line a plan: what the
command prints, the list it belongs to, and its arguments. Bytes and FLOPs are exact, and the same on every machine;
the seconds to compile are not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

# (list, size, topology, mesh, further settings). Batches: those of `mtp_jax/presets.py`, or 2 rows a chip.
CASES = [
    ("target", "7b", "v5p:4x4x4", "fsdp:16,tensor:4", {"model.num_heads": 1, "data.batch_size": 128}),
    ("target", "7b", "v5p:4x4x4", "fsdp:16,tensor:4", {"model.num_heads": 4, "data.batch_size": 128}),
    ("target", "13b", "v5p:4x4x8", "fsdp:32,tensor:4", {"model.num_heads": 4, "data.batch_size": 256}),
    ("target", "1.3b", "v5e:4x4", "fsdp:16", {"model.num_heads": 4, "data.batch_size": 32}),
    ("sizes", "1m", "v5e:2x2", "data:4", {"compute.microbatches": 1}),
    ("sizes", "3m", "v5e:2x2", "data:4", {"compute.microbatches": 2}),
    ("sizes", "10m", "v5e:2x2", "data:4", {"compute.microbatches": 4}),
    ("sizes", "30m", "v5e:2x2", "data:4", {"compute.microbatches": 8}),
    ("sizes", "100m", "v5e:2x2", "data:4", {"compute.microbatches": 16}),
    ("sizes", "300m", "v5e:4x4", "fsdp:16", {"compute.microbatches": 1}),
    ("sizes", "1b", "v5e:4x4", "fsdp:16", {"compute.microbatches": 1}),
    ("sizes", "0.3b", "v5e:4x4", "fsdp:16", {"compute.microbatches": 16}),
    ("sizes", "0.6b", "v5e:4x4", "fsdp:16", {"compute.microbatches": 32}),
    ("sizes", "1.3b", "v5e:4x8", "fsdp:32", {"compute.microbatches": 32}),
    ("sizes", "3b", "v5e:8x16", "fsdp:128", {"compute.microbatches": 8}),
    ("sizes", "6.7b", "v5p:4x4x4", "fsdp:16,tensor:4", {"compute.microbatches": 8}),
    ("sizes", "13b", "v5p:4x4x8", "fsdp:32,tensor:4", {"compute.microbatches": 4}),
    ("scaling", "7b", "v5p:4x4x4", "data:1,fsdp:16,tensor:4", {"data.batch_size": 128}),
    ("scaling", "7b", "v5p:4x8x8", "data:4,fsdp:16,tensor:4", {"data.batch_size": 512}),
    ("scaling", "7b", "v5p:8x8x16", "data:16,fsdp:16,tensor:4", {"data.batch_size": 2048}),
    ("scaling", "7b", "v5p:4x8x8", "data:1,fsdp:64,tensor:4", {"data.batch_size": 512}),
    ("scaling", "7b", "v5p:8x8x16", "data:1,fsdp:256,tensor:4", {"data.batch_size": 2048}),
    ("scaling", "7b", "v5p:4x4x4", "data:1,fsdp:64", {"data.batch_size": 128}),
    ("scaling", "7b", "v5p:4x8x8", "data:1,fsdp:256", {"data.batch_size": 512}),
]


def main() -> None:
    """Runs the lists that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="target,sizes,scaling", help="lists, comma-separated")
    wanted = parser.parse_args().only.split(",")
    for group, size, topology, mesh, settings in CASES:
        if group not in wanted:
            continue
        arguments = ["--experiment=paper", f"--config.size={size}", f"--topology={topology}",
                     f"--config.parallel.mesh={mesh}"]
        arguments += [f"--config.{name}={value}" for name, value in settings.items()]
        done = subprocess.run([sys.executable, "-m", "mtp_jax.plan", *arguments], stdout=subprocess.PIPE, text=True)
        if not done.stdout:
            raise SystemExit(f"python -m mtp_jax.plan {' '.join(arguments)} ended with status {done.returncode}.")
        plan = json.loads(done.stdout)
        plan.pop("assumptions", None)
        line = {"benchmark": "plans", "list": group, "size": size, **plan, "arguments": arguments}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
