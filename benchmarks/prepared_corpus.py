"""What does a prepared corpus cost: memory of its row index, speed of its rows, time to start training?

    python -m benchmarks.prepared_corpus [--rows=10000000] [--start_up_megabytes=1000]

Two corpora are made in a temporary folder (some GB): one of short documents, about one a row, for the index, and the
standard library's source repeated, for starting. Each figure is taken in a process of its own. Prints one JSON line a
case. Targets: under 50 MB resident for 10 million rows; training starts in under 5 s before it compiles.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

from benchmarks._corpora import run, write_jsonl

ROWS = flags.DEFINE_integer("rows", 10_000_000, "Rows, and documents, of the index.", lower_bound=1000)
MEGABYTES = flags.DEFINE_integer("start_up_megabytes", 1000, "Text of the corpus that training starts on.",
                                 lower_bound=20)
RUNS = flags.DEFINE_integer("runs", 5, "Runs; their median is reported.", lower_bound=1)
SEQ_LEN = 32  # short, so that ten million rows fit on a small disk; the index knows documents, not tokens

INDEX = """
import json, os, sys, time
import numpy as np
from array_record.python import array_record_module
from mtp_jax.config import DataConfig
from mtp_jax.data import open_corpus

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) / 1000

path, seq_len, reads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
before, start = resident(), time.perf_counter()
rows = open_corpus(DataConfig(source="prepared", path=path, seq_len=seq_len)).parts["prepared"].rows["train"]
rows[0]
opened, seconds = resident(), time.perf_counter() - start
numbers = np.random.default_rng(0).integers(0, len(rows), reads)
start = time.perf_counter()
for number in numbers.tolist():
    rows[number]
read = time.perf_counter() - start
print(json.dumps({"rows": len(rows), "tokens": rows.num_tokens, "open_seconds": round(seconds, 3),
                  "resident_mb_before": before, "resident_mb_opened": opened - before,
                  "reads": reads, "resident_mb_after_reads": resident() - before,
                  "rows_per_second": round(reads / read)}))
"""


def write_short_documents(path: pathlib.Path, count: int) -> None:
    """Writes an ArrayRecord of `count` documents of about a row's length, as ids of letters."""
    from array_record.python.array_record_module import ArrayRecordWriter

    draw = np.random.default_rng(0)
    writer = ArrayRecordWriter(str(path), "group_size:1000")
    letters = draw.integers(97, 123, 10**6, dtype=np.uint8).astype("<u2")
    lengths = draw.integers(SEQ_LEN // 2, 3 * SEQ_LEN // 2 - 4, count)  # with BOS and EOS a row on average
    starts = draw.integers(0, len(letters) - 2 * SEQ_LEN, count)
    for start, length in zip(starts.tolist(), lengths.tolist()):
        writer.write(letters[start:start + length].tobytes())
    writer.close()


def row_index(folder: pathlib.Path) -> dict:
    """Returns the memory of the index and the speed of its rows."""
    write_short_documents(folder / "short.array_record", round(ROWS.value * 1.08))
    seconds = run("mtp_jax.data.prepare", "--source=array_record", f"--path={folder / 'short.array_record'}",
                  "--field=uint16", f"--output={folder / 'short'}")
    (folder / "short.array_record").unlink()
    done = subprocess.run([sys.executable, "-c", INDEX, str(folder / "short"), str(SEQ_LEN), "200000"],
                          capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    on_disk = sum(path.stat().st_size for path in (folder / "short").glob("*index*"))
    documents = json.loads((folder / "short" / "manifest.json").read_text())["documents"]
    return {"benchmark": "row_index", **figures, "documents": documents, "prepare_seconds": round(seconds, 1),
            "index_mb_on_disk": on_disk / 1e6,
            "index_mb_on_disk_per_million_documents": round(on_disk / documents, 3)}


def start_up(folder: pathlib.Path) -> dict:
    """Returns the seconds from the start of the training command until it compiles."""
    write_jsonl(folder / "corpus.jsonl", MEGABYTES.value * 10**6)
    run("mtp_jax.data.prepare", "--source=jsonl", f"--path={folder / 'corpus.jsonl'}", f"--output={folder / 'large'}")
    (folder / "corpus.jsonl").unlink()
    command = [sys.executable, "-m", "experiments.code_bytes", f"--workdir={folder / 'run'}", "--dry_run",
               "--config.data.source=prepared", f"--config.data.path={folder / 'large'}"]
    seconds = []
    for _ in range(RUNS.value):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line in process.stderr or ():
            if line.startswith("to resume"):  # the last line before it compiles
                seconds.append(time.perf_counter() - start)
        if process.wait():
            raise RuntimeError(f"{' '.join(command)} failed")
    return {"benchmark": "start_up", "megabytes": MEGABYTES.value, "seconds": round(statistics.median(seconds), 2),
            "slowest_run": round(max(seconds), 2), "runs": RUNS.value, "cores": os.cpu_count()}


def main(argv: list[str]) -> None:
    """Prints every case."""
    del argv
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(start_up(pathlib.Path(name))), flush=True)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(row_index(pathlib.Path(name))), flush=True)


if __name__ == "__main__":
    app.run(main)
