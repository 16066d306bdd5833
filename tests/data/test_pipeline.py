"""Batches: epochs, places, a fixed validation pass, and workers that end; test_exactness.py has how runs resume."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from mtp_jax.data import TrainBatches, build_rows, open_corpus


@pytest.fixture
def corpus(config):
    return open_corpus(config)


def part(corpus):
    """Returns the only source of a corpus."""
    (only,) = corpus.parts.values()
    return only


def validation(corpus, *args):
    """Returns the validation batches of the only source."""
    (batches,) = corpus.validation_batches(*args).values()
    return batches


def take(batches, count):
    """Returns `count` batches, then closes."""
    with batches:
        return [next(batches) for _ in range(count)]


def assert_equal(got, want):
    assert got.keys() == want.keys() == {"tokens", "segments", "positions"}
    for name in want:
        assert got[name].dtype == np.int32
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_every_epoch_holds_each_row_once_in_another_order(corpus):
    rows, count = part(corpus).rows["train"], corpus.num_rows("train")
    stream = [row.tobytes() for batch in take(corpus.train_batches(), count) for row in batch["tokens"]]
    expected = sorted(rows[i]["tokens"].tobytes() for i in range(count))
    epochs = [stream[start:start + count] for start in range(0, 4 * count, count)]
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[0] != [rows[i]["tokens"].tobytes() for i in range(count)]


def test_shapes_and_state(corpus):
    with corpus.train_batches() as batches:
        assert batches.state() == {"next_row": 0}
        batch = next(batches)
        assert batch.keys() == {"tokens", "segments", "positions"}
        assert all(values.shape == (4, 32) and values.dtype == np.int32 for values in batch.values())
        assert batches.state() == {"next_row": 4}
    with corpus.train_batches(rows=[1, 3]) as batches:
        assert next(batches)["tokens"].shape == (2, 32)
        assert batches.state() == {"next_row": 4}  # a global number: the same on every host


def test_a_next_row_inside_a_batch(corpus):
    stream = np.concatenate([batch["tokens"] for batch in take(corpus.train_batches(), 4)])
    got = take(corpus.train_batches(next_row=3), 2)
    np.testing.assert_array_equal(np.concatenate([batch["tokens"] for batch in got]), stream[3:11])


def test_resuming_far_ahead_is_immediate(corpus):
    take(corpus.train_batches(), 1)  # imports
    start = time.perf_counter()
    take(corpus.train_batches(next_row=4 * 10**15), 1)
    assert time.perf_counter() - start < 5  # reading up to there would take years


def test_seeds_and_epochs_do_not_share_orders():
    rows = build_rows([np.arange(200)], bos_id=256, eos_id=257, pad_id=258, seq_len=2)

    def order(seed, next_row):
        return take(TrainBatches(rows, batch_size=len(rows), seed=seed, next_row=next_row), 1)[0]["tokens"].tobytes()

    # Grain adds the epoch to the seed: seeds 0 and 1 given to it as they are would read the same epochs shifted by one.
    assert len({order(seed, epoch * len(rows)) for seed in (-1, 0, 1, 2**40) for epoch in (0, 1)}) == 8


def test_validation_rows_are_fixed_and_each_counts_once(corpus):
    rows = part(corpus).rows["validation"]
    assert len(rows) > 3 * 4
    passes = [list(validation(corpus)) for _ in range(2)]
    for first, second in zip(*passes):
        assert_equal(first, second)
    assert len(passes[0]) == len(validation(corpus)) == 3
    chosen = [row.tobytes() for batch in passes[0] for row in batch["tokens"]]
    known = {rows[i]["tokens"].tobytes() for i in range(len(rows))}
    assert len(set(chosen)) == 12 and set(chosen) <= known
    assert_equal(validation(corpus)[-1], passes[0][-1])
    assert len(validation(corpus)[1:]) == 2
    with pytest.raises(IndexError):
        validation(corpus)[3]


def test_a_short_validation_split_is_filled_with_padding(config):
    corpus = open_corpus(dataclasses.replace(config, validation_batches=1000, batch_size=5))
    rows = corpus.num_rows("validation")
    batches = list(validation(corpus))
    assert len(batches) == -(-rows // 5) and rows % 5
    tokens = np.concatenate([batch["tokens"] for batch in batches])
    segments = np.concatenate([batch["segments"] for batch in batches])
    real = segments.any(axis=1)
    assert real.sum() == rows and real[:rows].all()
    assert np.all(tokens[~real] == 258)
    assert np.sum(segments > 0) == len(part(corpus).rows["validation"].tokens)  # every token once
    assert all(batch["segments"].any() for batch in batches)


@pytest.mark.parametrize("of", ["train_batches", "validation_batches"])
@pytest.mark.parametrize("rows", [[], [-1, 0], [4], [1, 1], [2, 1]])
def test_rows_that_a_batch_has_not(corpus, of, rows):
    with pytest.raises(ValueError, match=r"cannot read the rows .* of data\.batch_size=4: give ascending numbers"):
        getattr(corpus, of)(rows)


def test_bad_next_row_and_closed_batches(corpus):
    with pytest.raises(ValueError, match="next_row=-4"):
        corpus.train_batches(next_row=-4)
    batches = corpus.train_batches()
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="were closed"):
        next(batches)


SCRIPT = """
import json, multiprocessing, os, sys, time
from mtp_jax.config import DataConfig
from mtp_jax.data import open_corpus

def main():
    batches = open_corpus(DataConfig(**json.loads(sys.argv[1]))).train_batches()
    next(batches)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    if sys.argv[2] == "fail":
        raise RuntimeError("on purpose")
    time.sleep(600)

if __name__ == "__main__":
    main()
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # a zombie that nobody waited for is dead too
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
@pytest.mark.parametrize("how", ["kill", "fail"])
def test_workers_end_with_the_run(config, tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = json.dumps(dataclasses.asdict(dataclasses.replace(config, num_workers=1)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, str(script), arguments, how], env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 1
    if how == "kill":
        process.kill()
    _, errors = process.communicate(timeout=60)
    if how == "fail":  # ends by itself, with its own error and no noise about shared memory
        assert process.returncode == 1 and "on purpose" in errors and "leaked" not in errors
    deadline = time.time() + 30
    while alive(workers[0]) and time.time() < deadline:
        time.sleep(0.05)
    assert not alive(workers[0])
