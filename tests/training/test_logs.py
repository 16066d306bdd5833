"""metrics.jsonl and TensorBoard events: schema, cutting back, killed writers, full disks, buckets."""

import errno
import io
import json
import math
import os
import pathlib
import signal
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from mtp_jax.training import logs
from mtp_jax.training.logs import Record, RunLog, cut_back


def record(step, split="train", **changes):
    values = dict(loss=1.5, head_loss=[1.0, 2.0], head_accuracy=[0.5, 0.25], tokens_per_second=1000.0, mfu=None,
                  learning_rate=3e-4, grad_norm=0.7)
    return Record(step=step, split=split, **{**values, **changes})


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(workdir):
    """Returns the events of each file of a workdir, in order of writing, read by the record format."""
    found = []
    for path in sorted(workdir.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        data, at, file = path.read_bytes(), 0, []
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            file.append(event_pb2.Event.FromString(data[at + 12:at + 12 + length]))
            at += 12 + length + 4
        found.append(file)
    return found


def test_line_has_the_documented_keys_in_order(tmp_path):
    with RunLog(tmp_path, step=0) as log:
        log.write(record(1))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert list(json.loads(line)) == ["step", "split", "loss", "head_loss", "head_accuracy", "tokens_per_second",
                                      "mfu", "learning_rate", "grad_norm"]
    assert json.loads(line) == {"step": 1, "split": "train", "loss": 1.5, "head_loss": [1.0, 2.0],
                                "head_accuracy": [0.5, 0.25], "tokens_per_second": 1000.0, "mfu": None,
                                "learning_rate": 3e-4, "grad_norm": 0.7}


def test_optional_keys_appear_only_where_given(tmp_path):
    with RunLog(tmp_path, step=0) as log:
        log.write(record(1, "validation", head_agreement=[1.0, 0.4], expected_accepted_length=1.4,
                         validation_bits_per_byte=[1.4, 2.8]))
    (line,) = lines(tmp_path)
    assert line["head_agreement"] == [1.0, 0.4]
    assert line["expected_accepted_length"] == 1.4
    assert line["validation_bits_per_byte"] == [1.4, 2.8]


def test_sources_of_a_mixture_are_nested_in_the_line_and_have_tags_of_their_own(tmp_path):
    sources = {"a": {"head_loss": [jnp.float32(0.5), None]}, "b": {"head_loss": np.array([np.nan, 2.0])}}
    with RunLog(tmp_path, step=0) as log:
        log.write(record(10, "validation", sources=sources))
        log.write(record(20, "validation", sources=sources))
    with RunLog(tmp_path, step=10):
        pass
    (line,) = lines(tmp_path)
    assert line["sources"] == {"a": {"head_loss": [0.5, None]}, "b": {"head_loss": [None, 2.0]}}
    found = {v.tag: v.simple_value for e in events(tmp_path)[0] for v in e.summary.value}
    assert {tag: value for tag, value in found.items() if tag.split("/")[1] in "ab"} == {
        "validation/a/head_loss/1": 0.5, "validation/b/head_loss/2": 2.0}


def test_arrays_become_exact_floats_and_the_non_finite_null(tmp_path):
    with RunLog(tmp_path, step=0) as log:
        log.write(record(np.int32(3), loss=jnp.float32(0.1), head_loss=np.array([np.nan, 0.1], np.float32),
                         head_accuracy=[None, jnp.float32(np.inf)], grad_norm=float("-inf")))
    (line,) = lines(tmp_path)
    assert line["step"] == 3
    assert line["loss"] == float(np.float32(0.1)) and line["head_loss"] == [None, float(np.float32(0.1))]
    assert line["head_accuracy"] == [None, None] and line["grad_norm"] is None


@given(st.floats())
def test_every_float_makes_valid_json(value):
    text = json.dumps(logs.to_json(record(1, loss=value, head_loss=[value, None])), allow_nan=False)
    back = json.loads(text)
    assert back["loss"] == (value if math.isfinite(value) else None) == back["head_loss"][0]


def test_resume_cuts_both_splits_after_the_step_and_appends(tmp_path):
    with RunLog(tmp_path, step=0) as log:
        for step in (10, 20, 30):
            log.write(record(step))
            log.write(record(step, "validation"))
    with RunLog(tmp_path, step=20) as log:
        log.write(record(25))
    assert [(v["step"], v["split"]) for v in lines(tmp_path)] == [
        (10, "train"), (10, "validation"), (20, "train"), (20, "validation"), (25, "train")]


def test_torn_last_line_goes_even_when_it_is_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2')
    assert cut_back(path, step=5) == 1 and path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1}\n{"step": 2}')  # the newline is missing: a line that follows would stick to it
    assert cut_back(path, step=5) == 1 and path.read_text() == '{"step": 1}\n'


def test_damaged_line_in_the_middle_is_named_and_removed(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[1]\n\xff\xfe\n{"step": 2}\n')
    with caplog.at_level("WARNING", "absl"):
        assert cut_back(path, step=5) == 2
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert "line 2" in caplog.text and "line 3" in caplog.text


def test_start_from_nothing_keeps_no_line_and_missing_file_is_fine(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert cut_back(path, step=0) == 0
    path.write_text('{"step": 0}\n{"step": 1}\n')
    assert cut_back(path, step=0) == 2 and path.read_text() == ""


def test_uncut_file_is_not_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    path.chmod(0o444)
    before = path.stat()
    assert cut_back(path, step=1) == 0
    assert path.stat().st_ino == before.st_ino and path.stat().st_mtime_ns == before.st_mtime_ns


def test_killed_writer_loses_no_written_line(tmp_path):
    code = ("import sys, os, signal\n"
            "from mtp_jax.training.logs import Record, RunLog\n"
            "log = RunLog(sys.argv[1], step=0, tensorboard=False)\n"
            "for step in range(1, 51):\n"
            "    log.write(Record(step=step, split='train', loss=1.0, head_loss=[1.0], head_accuracy=[0.0]))\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=pathlib.Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert [v["step"] for v in lines(tmp_path)] == list(range(1, 51))


def test_full_disk_names_the_file_and_leaves_whole_lines(tmp_path, monkeypatch):
    log = RunLog(tmp_path, step=0, tensorboard=False)
    log.write(record(1))
    whole, calls = os.write, []

    def half_then_full(descriptor, data):
        calls.append(data)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return whole(descriptor, data[:10])

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(OSError, match="No space left on device.*metrics.*free some space") as caught:
        log.write(record(2))
    monkeypatch.undo()
    assert caught.value.errno == 28 and caught.value.filename == str(tmp_path / "metrics.jsonl")
    log.write(record(3))
    assert [v["step"] for v in lines(tmp_path)] == [1, 3]


def test_full_disk_under_metrics_is_what_a_with_block_raises(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="metrics cannot be written; free some space") as caught:
        with RunLog(tmp_path, step=0) as log:
            log.write(record(1))
            monkeypatch.setattr(os, "fsync", full)  # a second flush would raise, too
            monkeypatch.setattr(os, "write", full)
            log.write(record(2))
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert caught.value.__context__ is caught.value.__cause__ and caught.value.__cause__.__context__ is None
    with pytest.raises(OSError):  # closed
        os.fstat(log._descriptor)
    log.close()


class FullDisk(io.RawIOBase):
    """A file that nothing can be written to."""

    def writable(self):
        return True

    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("buffer, at", [(1, "write"), (2**16, "flush"), (2**16, "close")])
def test_full_disk_under_events_names_the_file_and_the_remedy(buffer, at, tmp_path, monkeypatch):
    raw = FullDisk()
    log = RunLog(tmp_path, step=0)
    log.flush()
    monkeypatch.setattr(log._events._file, "_writer", io.BufferedWriter(raw, buffer))
    with pytest.raises(OSError, match="No space left.*metrics cannot be written; free some space") as caught:
        with log:
            log.write(record(1))
            assert at != "write"
            if at == "flush":
                log.flush()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(next(tmp_path.glob("events.out.tfevents.*")))
    assert raw.closed and [v["step"] for v in lines(tmp_path)] == [1]
    with pytest.raises(OSError):  # closed
        os.fstat(log._descriptor)
    log.close()


def test_closed_log_refuses_records(tmp_path):
    log = RunLog(tmp_path, step=0)
    log.close()
    log.close()
    with pytest.raises(ValueError, match="step 7.*closed"):
        log.write(record(7))


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with RunLog(tmp_path / "run", step=0) as log:
        log.write(record(1))
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_the_same_scalars_with_a_tag_a_head(tmp_path):
    with RunLog(tmp_path, step=0) as log:
        log.write(record(1, head_loss=[1.0, None, 3.0]))
        log.flush()  # nothing may wait in a queue
        (file,) = events(tmp_path)
    found = {v.tag: v.simple_value for e in file for v in e.summary.value}
    assert found == pytest.approx({"train/loss": 1.5, "train/head_loss/1": 1.0, "train/head_loss/3": 3.0,
                                   "train/head_accuracy/1": 0.5, "train/head_accuracy/2": 0.25,
                                   "train/tokens_per_second": 1000.0, "train/learning_rate": 3e-4,
                                   "train/grad_norm": 0.7})


def test_resume_purges_later_events_and_keeps_the_older_file(tmp_path):
    for step in (0, 20, 20):
        with RunLog(tmp_path, step=step) as log:
            log.write(record(step + 10))
    files = events(tmp_path)
    starts = [e.step for file in files for e in file if e.session_log.status == event_pb2.SessionLog.START]
    assert sorted(starts)[0] == 0 and sorted(starts)[-1] == 21


def test_tensorboard_off_leaves_no_events(tmp_path):
    with RunLog(tmp_path, step=0, tensorboard=False) as log:
        log.write(record(1))
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_bucket_is_rewritten_whole_at_flush_only(tmp_path, monkeypatch):
    """A bucket stands in as a local folder: `is_remote` alone decides whether appending is possible."""
    monkeypatch.setattr(logs, "is_remote", lambda path: True)
    with RunLog(tmp_path, step=0) as log:
        log.write(record(10))
        assert list(tmp_path.iterdir()) == []
        log.flush()
        assert [v["step"] for v in lines(tmp_path)] == [10]
        log.write(record(20))
        assert [v["step"] for v in lines(tmp_path)] == [10]
    assert [v["step"] for v in lines(tmp_path)] == [10, 20]
    assert {v.tag for file in events(tmp_path) for e in file for v in e.summary.value} >= {"train/loss"}
    with RunLog(tmp_path, step=10) as log:
        log.write(record(15))
    assert [v["step"] for v in lines(tmp_path)] == [10, 15]


def test_bucket_is_rewritten_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "is_remote", lambda path: True)
    monkeypatch.setattr(logs, "REMOTE_SECONDS", 0.0)
    log = RunLog(tmp_path, step=0, tensorboard=False)
    log.write(record(10))
    assert [v["step"] for v in lines(tmp_path)] == [10]


def test_bucket_paths_are_told_apart():
    assert logs.is_remote("gs://bucket/run") and not logs.is_remote("/runs/x") and not logs.is_remote("runs")
