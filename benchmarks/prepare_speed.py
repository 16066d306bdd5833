"""How fast is `python -m mtp_jax.data.prepare`, with one and with two processes?

    python -m benchmarks.prepare_speed [--megabytes=400]

Repeats the standard library's source in a JSONL file of that size, prepares it with bytes and with a BPE of 4,096, with
1 and 2 processes taking turns, and prints one JSON line a case: MB of text a second of the whole command, its start and
end included. "scaling" is the ratio to one process.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import statistics
import tempfile

from absl import app, flags

from benchmarks._corpora import run, write_jsonl

MEGABYTES = flags.DEFINE_integer("megabytes", 400, "Size of the corpus, MB of text.", lower_bound=20)
RUNS = flags.DEFINE_integer("runs", 3, "Runs of each command; their median is reported.", lower_bound=1)
PROCESSES = flags.DEFINE_list("processes", ["1", "2"], "Numbers of processes.")


def main(argv: list[str]) -> None:
    """Prints every case."""
    del argv
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer.json"
        write_jsonl(corpus, MEGABYTES.value * 10**6)
        run("mtp_jax.data.train_tokenizer", "--source=stdlib", "--vocab_size=4096", f"--output={tokenizer}")
        for spec, case in (("bytes", "bytes"), (str(tokenizer), "BPE 4096")):
            seconds: dict[str, list[float]] = {processes: [] for processes in PROCESSES.value}
            for _ in range(RUNS.value):
                for processes in PROCESSES.value:
                    seconds[processes].append(run(
                        "mtp_jax.data.prepare", "--source=jsonl", f"--path={corpus}", f"--tokenizer={spec}",
                        f"--output={folder / 'prepared'}", f"--processes={processes}"))
                    manifest = json.loads((folder / "prepared" / "manifest.json").read_text())
                    shutil.rmtree(folder / "prepared")
            first = statistics.median(seconds[PROCESSES.value[0]])
            for processes in PROCESSES.value:
                median = statistics.median(seconds[processes])
                print(json.dumps({
                    "benchmark": "prepare_speed", "tokenizer": case, "processes": int(processes),
                    "megabytes": MEGABYTES.value, "seconds": round(median, 2), "runs": RUNS.value,
                    "megabytes_per_second": round(MEGABYTES.value / median, 1), "scaling": round(first / median, 2),
                    "tokens": manifest["tokens"], "tokens_per_second": round(manifest["tokens"] / median),
                    "cores": os.cpu_count()}), flush=True)


if __name__ == "__main__":
    app.run(main)
