"""How many tokens a second does the input pipeline alone give?

    python -m benchmarks.input_pipeline

Drains training batches with 0, 1 and 2 worker processes, of the `stdlib` corpus in memory, of the same prepared on
disk, and of a mixture of both with a third; nothing trains beside it. Prints one JSON line a case. Expected: at least
20 times what training consumes, so 200,000 tokens a second for the demo on two cores; millions were measured.
"""

import dataclasses
import json
import os
import platform
import statistics
import tempfile
import time

from absl import app, flags

from benchmarks._corpora import run
from mtp_jax.config import DataConfig, MixtureConfig
from mtp_jax.data import open_corpus

BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Rows a batch.", lower_bound=1)
SEQ_LEN = flags.DEFINE_integer("seq_len", 256, "Tokens a row.", lower_bound=1)
BATCHES = flags.DEFINE_integer("batches", 400, "Batches that one run drains.", lower_bound=1)
RUNS = flags.DEFINE_integer("runs", 7, "Runs; their median is reported.", lower_bound=1)


def measure(corpus, num_workers: int) -> dict:
    """Returns one case: tokens a second after a warm-up that is longer than the prefetch buffer."""
    config = dataclasses.replace(corpus.config, num_workers=num_workers)
    start = time.perf_counter()
    with dataclasses.replace(corpus, config=config).train_batches() as batches:
        next(batches)
        first = time.perf_counter() - start
        for _ in range(100):
            next(batches)
        rates = []
        for _ in range(RUNS.value):
            start = time.perf_counter()
            tokens = sum(next(batches)["tokens"].size for _ in range(BATCHES.value))
            rates.append(tokens / (time.perf_counter() - start))
    return {"num_workers": num_workers, "tokens_per_second": round(statistics.median(rates)),
            "slowest_run": round(min(rates)), "fastest_run": round(max(rates)), "runs": RUNS.value,
            "first_batch_seconds": round(first, 2)}


def cases(folder: str) -> dict[str, DataConfig]:
    """Returns {case: its data}; prepares a corpus in `folder`."""
    run("mtp_jax.data.prepare", "--source=stdlib", f"--output={folder}/prepared")
    shape = {"batch_size": BATCH_SIZE.value, "seq_len": SEQ_LEN.value}
    return {
        "stdlib": DataConfig(source="stdlib", **shape),
        "prepared": DataConfig(source="prepared", path=f"{folder}/prepared", **shape),
        "mixture": DataConfig(mixture=(
            MixtureConfig("memory", weight=0.6, source="stdlib"),
            MixtureConfig("disk", weight=0.3, source="prepared", path=f"{folder}/prepared"),
            MixtureConfig("small", weight=0.1, source="stdlib", max_bytes=10_000)), **shape)}


def main(argv):
    del argv
    with tempfile.TemporaryDirectory() as folder:
        for name, config in cases(folder).items():
            start = time.perf_counter()
            corpus = open_corpus(config)
            case = {"benchmark": "input_pipeline", "source": name, "corpus_tokens": corpus.num_tokens,
                    "open_seconds": round(time.perf_counter() - start, 3), "batch_size": config.batch_size,
                    "seq_len": config.seq_len, "cores": os.cpu_count(), "python": platform.python_version()}
            for num_workers in (0, 1, 2):
                print(json.dumps({**case, **measure(corpus, num_workers)}), flush=True)


if __name__ == "__main__":
    app.run(main)
