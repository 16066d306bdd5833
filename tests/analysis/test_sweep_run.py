"""Running a sweep's cells here: retries, status 75, stopping, several at once, and the lock of the folder."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from mtp_jax.analysis.sweep_board import Board
from mtp_jax.analysis.sweep_cells import Cell
from mtp_jax.analysis.sweep_record import CellRecord, SweepRecord, alone
from mtp_jax.analysis.sweep_run import LocalRunner, last_lines
from mtp_jax.config import from_dict

STEPS = 4
# A run in miniature: what it does on each start is a word of its plan. A process takes no part of jax.
FAKE = """
import json, os, pathlib, signal, sys, time
folder, plan = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
start = len(list(folder.glob("start_*")))
word = plan[min(start, len(plan) - 1)]
began = time.monotonic()
def save(step):
    (folder / "checkpoints" / str(step)).mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text(json.dumps(
        {"step": step, "split": "train", "head_loss": [1.0], "tokens_per_second": 10.0}) + chr(10))
if word == "wait":
    signal.signal(signal.SIGTERM, lambda *_: (save(2), os._exit(75)))
if word == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / f"start_{start}").write_text(str(began))
print("this is attempt", start, word, flush=True)
if word == "done":
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    save(4)
elif word == "part":
    save(1)
    sys.exit(75)
elif word in ("wait", "deaf"):
    time.sleep(60)
elif word == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif word != "nothing":
    sys.exit(int(word))
(folder / f"end_{start}").write_text(str(time.monotonic()))
"""


def cells(folder, **plans):
    """Returns a cell for each plan."""
    config = from_dict({"train": {"num_steps": STEPS}})
    return [Cell(name, {"plan": plan}, (), config, str(folder / name)) for name, plan in plans.items()]


def run(todo, folder, *, parallel=1, retries=1, record=None, **kwargs):
    """Runs cells; returns the status, the record and what was shown."""
    record, shown = record or SweepRecord(folder), io.StringIO()
    runner = LocalRunner(command=lambda cell: [sys.executable, "-S", "-c", FAKE, cell.workdir, cell.values["plan"]],
                         parallel=parallel, retries=retries, record=record, board=Board(todo, stream=shown), **kwargs)
    return runner.run(todo), record, shown.getvalue()


def starts(folder, name):
    return len(list((folder / name).glob("start_*")))


def test_a_cell_that_fails_the_first_time_is_run_again(tmp_path):
    todo = cells(tmp_path, first="3,done", second="done")
    status, record, shown = run(todo, tmp_path)
    assert status == 0 and starts(tmp_path, "first") == 2 and starts(tmp_path, "second") == 1
    assert "first: ended with status 3 and is run again" in shown and "first: started, attempt 2" in shown
    assert record["first"].attempts == 2 and record["first"].status == "" and record["first"].seconds > 0
    log = (tmp_path / "first" / "log.txt").read_text()
    assert log.count("(attempt ") == 2 and "this is attempt 0 3\n(ended with status 3)\n" in log
    assert SweepRecord(tmp_path)["first"] == record["first"]  # it is on disk


def test_a_cell_that_fails_for_good_does_not_stop_the_others(tmp_path):
    settled = []
    todo = cells(tmp_path, bad="1,killed,1", good="done")
    status, record, shown = run(todo, tmp_path, retries=2, settled=lambda: settled.append(1))
    assert status == 1 and starts(tmp_path, "bad") == 3 and len(settled) == 2
    assert record["bad"].status == "failed" and record["good"].status == ""
    assert "was killed by SIGKILL and is run again" in shown and "bad: ended with status 1 after" in shown
    assert last_lines(todo[0])[-2:] == ["this is attempt 2 1", "(ended with status 1)"]
    assert run(todo[:1], tmp_path, retries=0)[0] == 1 and starts(tmp_path, "bad") == 4


def test_status_75_is_run_again_as_long_as_it_comes_further(tmp_path):
    todo = cells(tmp_path, moves="part,done")
    status, record, shown = run(todo, tmp_path, retries=0)
    assert status == 0 and record["moves"].attempts == 2 and "saved at step 1 of 4 and is run again" in shown
    status, record, _ = run(cells(tmp_path, stuck="75"), tmp_path, retries=1)
    assert status == 1 and record["stuck"].attempts == 2 and record["stuck"].status == "failed"


def test_a_run_that_ends_well_without_its_last_step_has_failed(tmp_path):
    status, _, shown = run(cells(tmp_path, lazy="nothing"), tmp_path, retries=0)
    assert status == 1 and "ended with status 0 at step 0 of 4" in shown


def test_a_run_that_a_person_interrupts_is_not_run_again(tmp_path):
    status, record, _ = run(cells(tmp_path, one="130"), tmp_path)
    assert status == 1 and record["one"].attempts == 1 and record["one"].status == "stopped"


@pytest.mark.parametrize("parallel, most", [(1, 1), (2, 2)])
def test_so_many_run_at_once(parallel, most, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.4")
    status, _, _ = run(cells(tmp_path, a="done", b="done", c="done"), tmp_path, parallel=parallel)
    spans = [[float((tmp_path / name / f"{end}_0").read_text()) for end in ("start", "end")] for name in "abc"]
    together = max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)
    assert status == 0 and together == most


def tell(number, folder, *names, times=1):
    """Sends this process a signal once the cells run, and again a while later."""
    def wait():
        while not all((folder / name / "start_0").exists() for name in names):
            time.sleep(0.02)
        for _ in range(times):
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_what_stops_the_sweep_lets_its_cells_save(number, status, tmp_path):
    todo = cells(tmp_path, a="wait,done", b="wait,done", c="done")
    before = signal.getsignal(number)
    tell(number, tmp_path, "a", "b")
    got, record, shown = run(todo, tmp_path, parallel=2)
    assert got == status and signal.getsignal(number) is before
    assert [record[name].status for name in "abc"] == ["stopped", "stopped", ""] and starts(tmp_path, "c") == 0
    assert (tmp_path / "a" / "checkpoints" / "2").exists() and "Stopping: the cells save" in shown
    assert run(todo, tmp_path)[0] == 0  # and it goes on


def test_a_second_ctrl_c_ends_cells_at_once(tmp_path):
    tell(signal.SIGINT, tmp_path, "a", times=2)
    began = time.monotonic()
    status, record, shown = run(cells(tmp_path, a="deaf"), tmp_path)
    assert status == 130 and record["a"].status == "stopped" and "Ending the cells." in shown
    assert time.monotonic() - began < 20


def test_a_folder_has_one_sweep_and_stays_locked_while_a_cell_of_it_lives(tmp_path):
    folder = tmp_path / "sweep"
    with alone(str(folder)) as lock:
        with pytest.raises(ValueError, match="in use by another sweep"), alone(str(folder)):
            pass
        child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lock)
    try:
        with pytest.raises(ValueError, match="or by a cell of one that was killed"), alone(str(folder)):
            pass
    finally:
        child.communicate(b"\n", timeout=20)
    with alone(str(folder)):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"), alone(str(tmp_path / "file")):
        pass


def test_cells_inherit_the_lock(tmp_path):
    plan = cells(tmp_path, a="done")
    with alone(str(tmp_path)) as lock:
        runner = LocalRunner(
            command=lambda cell: [sys.executable, "-S", "-c",
                                  f"import os, sys; os.fstat({lock[0]}); sys.argv[1:] = {[cell.workdir, 'done']!r}\n"
                                  + FAKE], parallel=1, retries=0, record=SweepRecord(tmp_path),
            board=Board(plan, stream=io.StringIO()), inherit=lock)
        assert runner.run(plan) == 0, (tmp_path / "a" / "log.txt").read_text()


def test_a_damaged_record_is_told(tmp_path):
    (tmp_path / "sweep.json").write_text('{"cells": {"a": {"secs": 1}}}')
    with pytest.raises(ValueError, match=r"sweep\.json is damaged .*delete it"):
        SweepRecord(tmp_path)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_table_of_a_terminal_shows_every_cell_or_the_running_ones_first(tmp_path):
    few, many = cells(tmp_path, a="x", b="x"), cells(tmp_path, **{f"c{number:02d}": "x" for number in range(40)})
    pathlib.Path(few[0].workdir).mkdir()
    (tmp_path / "a" / "metrics.jsonl").write_text(
        json.dumps({"step": 3, "split": "train", "head_loss": [2.5, 3.0], "tokens_per_second": 1234.0}) + "\n"
        + json.dumps({"step": 3, "split": "validation", "head_loss": [9.0], "tokens_per_second": None}) + '\n{"st')
    board = Board(few, done=["b"], stream=Terminal())
    board.began(few[0], 1)
    first, second = board.table()
    assert first.startswith("a  running ") and first.endswith("step 3/4, head 1 2.500, 1,234 tokens/s")
    assert second == "b  done before"
    board = Board(many, stream=Terminal())
    board.began(many[30], 1)
    table = board.table()
    assert len(table) == 22 and table[0].startswith("c30  running") and table[-1] == "... 19 more of 40 cells"
    board.show()
    board.message("told")
    assert "\x1b[22A\x1b[Jtold\n" in board._stream.getvalue()


def test_records_of_cells_start_empty():
    assert SweepRecord(None)["x"] == CellRecord()
    with pytest.raises(ValueError, match="no folder"):
        SweepRecord(None).write()
