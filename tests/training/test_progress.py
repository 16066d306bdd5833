"""The display of a run: a bar, plain lines, who prints, what a line says."""

import contextlib
import io
import os

import jax
import pytest

from mtp_jax.training import progress
from mtp_jax.training.logs import Record
from mtp_jax.training.progress import Progress, count, duration, summary


def record(step, split="train", **changes):
    values = dict(loss=5.4321, head_loss=[1.234, None], head_accuracy=[0.5, None], tokens_per_second=12345.0)
    return Record(step=step, split=split, **{**values, **changes})


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand, in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_summary_says_everything_and_marks_inactive_heads():
    full = record(1, mfu=0.412, tflops_per_device=1.5)
    assert summary(full) == "loss 5.432  heads 1.23 -  12.3k tok/s  1.5 TFLOP/s  MFU 41.2%"
    assert summary(record(1, tokens_per_second=None)) == "loss 5.432  heads 1.23 -"


@pytest.mark.parametrize("seconds, text", [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (125, "2m05s"), (3599.7, "1h00m"),
                                           (9000, "2h30m")])
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("number, text", [(7, "7"), (999, "999"), (999.9, "1.00k"), (9996, "10.0k"), (12345, "12.3k"),
                                          (123456, "123k"), (2.5e6, "2.50M"), (3e9, "3.00G")])
def test_count(number, text):
    assert count(number) == text


def test_lines_are_spaced_in_time_but_the_last_step_and_validation_always_show(clock):
    out = io.StringIO()
    with Progress(mode="auto", first_step=0, num_steps=40, stream=out) as shown:
        for step in range(1, 41):
            shown.advance(step)
            clock[0] += 0.5
            if step % 4 == 0:
                shown.show(record(step))
            if step == 20:
                shown.show(record(step, "validation"))
    heads = [" ".join(line.split()[:2]) for line in out.getvalue().splitlines()]
    assert heads == ["train 4/40", "train 16/40", "validation 20/40", "train 28/40", "train 40/40"]


def test_time_left_does_not_count_the_first_step_that_compiles(clock):
    out = io.StringIO()
    shown = Progress(mode="lines", first_step=50, num_steps=100, stream=out)
    clock[0] += 60.0
    shown.advance(51)
    assert shown.seconds_left() is None
    clock[0] += 2.0
    shown.advance(52)
    assert shown.seconds_left() == pytest.approx(2.0 * 48)
    shown.show(record(52))
    assert out.getvalue().endswith("ETA 1m36s\n")
    shown.show(record(100))
    assert "ETA" not in out.getvalue().splitlines()[-1]


def test_terminal_gets_a_bar_with_the_numbers_and_messages_above_it():
    out = Terminal()
    with Progress(mode="auto", first_step=10, num_steps=20, stream=out) as shown:
        shown.advance(15)
        shown.show(record(15))
        shown.show(record(15, "validation"))
        shown.message("checkpoint 15 saved")
    text = out.getvalue()
    assert "15/20" in text and "loss 5.432  heads 1.23 -" in text and "\r" in text
    assert "validation 15/20" in text and "checkpoint 15 saved\n" in text


def test_narrow_terminal_keeps_the_time_left(clock):
    out = Terminal()
    with Progress(mode="bar", first_step=0, num_steps=100, stream=out) as shown:
        for step in (1, 2):
            shown.advance(step)
            clock[0] += 1.0
        shown.show(record(2))
    assert "| 2/100, ETA 3m16s  loss 5.432" in out.getvalue()


def test_bar_shows_on_a_terminal_that_does_not_know_its_size():
    controller, terminal = os.openpty()  # a new one has no lines and no columns
    with os.fdopen(terminal, "w") as stream, Progress(mode="auto", first_step=0, num_steps=2, stream=stream) as shown:
        shown.advance(1)
        shown.show(record(1))
        assert os.get_terminal_size(terminal).lines == 0
    text = b""
    with contextlib.suppress(OSError):  # what was written comes in parts; behind the last one is an error, on Linux
        while part := os.read(controller, 10_000):
            text += part
    os.close(controller)
    assert b"1/2" in text and b"loss 5.432" in text


def test_auto_without_a_terminal_has_no_bar():
    out = io.StringIO()
    with Progress(mode="auto", first_step=0, num_steps=2, stream=out) as shown:
        shown.advance(1)
        shown.show(record(1))
    assert "\r" not in out.getvalue() and out.getvalue().count("\n") == 1


def test_other_processes_print_nothing(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    out = Terminal()
    with Progress(mode="bar", first_step=0, num_steps=2, stream=out) as shown:
        shown.advance(1)
        shown.show(record(1))
        shown.message("hello")
    assert out.getvalue() == ""


def test_stderr_is_the_default(capsys):
    Progress(mode="lines", first_step=0, num_steps=2).message("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_unknown_mode_suggests():
    with pytest.raises(ValueError, match='logging.progress=\'line\'.*Did you mean "lines"'):
        Progress(mode="line", first_step=0, num_steps=1)
