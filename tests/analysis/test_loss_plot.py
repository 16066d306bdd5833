"""The loss plot: what is read, what is drawn, in which unit, and what is said when there is nothing."""

import json
import math
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.analysis import loss_plot
from mtp_jax.analysis.loss_plot import curve, in_bytes, plot_loss, read_metrics, smooth


def write_run(workdir, *, heads=3, steps=range(10, 60, 10), tokenizer="bytes"):
    """Writes a run whose head k has the loss k + 10 / step in training and 0.5 more in validation."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"data": {"tokenizer": tokenizer}, "version": "0"}))
    with open(workdir / "metrics.jsonl", "w") as file:
        for step in steps:
            losses = [head + 10 / step for head in range(1, heads + 1)]
            for split, more in (("train", 0.0), ("validation", 0.5)):
                file.write(json.dumps({"step": step, "split": split, "loss": sum(losses),
                                       "head_loss": [loss + more for loss in losses]}) + "\n")


def axes_of(workdir):
    records = read_metrics(workdir)
    return loss_plot._figure(records, bytes_=in_bytes(workdir), title="t").axes[0]


def test_picture_lies_in_the_workdir_and_fits_a_readme(tmp_path):
    write_run(tmp_path)
    path = plot_loss(tmp_path)
    assert path == tmp_path / "plots" / "loss.png"
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (880, 495)
    assert len(data) < 200_000
    assert plot_loss(tmp_path) == path  # again, over the old one


def test_each_head_has_a_training_and_a_validation_curve_of_one_colour(tmp_path):
    write_run(tmp_path, tokenizer="words")
    lines = [line for line in axes_of(tmp_path).lines if len(line.get_xdata())]
    assert len(lines) == 6
    for head in range(1, 4):
        train, validation = lines[2 * head - 2:2 * head]
        assert train.get_color() == validation.get_color()
        assert train.get_linewidth() < validation.get_linewidth()
        assert train.get_marker() == "None" and validation.get_marker() == "o"
        assert list(train.get_xdata()) == [10, 20, 30, 40, 50]
        assert list(train.get_ydata()) == pytest.approx([head + 10 / step for step in range(10, 60, 10)])
        assert list(validation.get_ydata()) == pytest.approx([head + 0.5 + 10 / step for step in range(10, 60, 10)])
    assert len({line.get_color() for line in lines}) == 3


@pytest.mark.parametrize("tokenizer, unit, label", [("bytes", math.log(2), "bits per byte"),
                                                    ("words", 1.0, "nats per token")])
def test_unit_follows_the_tokenizer(tokenizer, unit, label, tmp_path):
    write_run(tmp_path, tokenizer=tokenizer)
    axes = axes_of(tmp_path)
    assert axes.get_ylabel() == label and axes.get_xlabel() == "step" and axes.get_title() == "t"
    assert axes.lines[0].get_ydata()[-1] == pytest.approx((1 + 10 / 50) / unit)
    assert f"head 1: {(1.5 + 10 / 50) / unit:.2f}" in [line.get_label() for line in axes.lines]


def test_run_without_a_config_is_in_nats(tmp_path):
    write_run(tmp_path)
    (tmp_path / "config.json").unlink()
    assert not in_bytes(tmp_path)


def test_inactive_heads_and_runs_without_validation_are_drawn(tmp_path):
    records = [{"step": step, "split": "train", "loss": 1.0, "head_loss": [1.0, None if step < 30 else 2.0]}
               for step in range(10, 60, 10)]
    assert curve(records, split="train", head=2) == ([30, 40, 50], [2.0, 2.0, 2.0])
    assert curve(records, split="validation", head=1) == ([], [])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert plot_loss(tmp_path).exists()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**records[0], "head_loss": [None, None]}) + "\n")
    assert plot_loss(tmp_path).exists()


def test_each_source_of_a_mixture_has_a_validation_curve(tmp_path):
    write_run(tmp_path, heads=2)
    plain = len(axes_of(tmp_path).lines)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        for step, prose in ((60, 4.0), (70, None)):
            file.write(json.dumps({"step": step, "split": "validation", "head_loss": [2.0, 3.0], "sources": {
                "code": {"head_loss": [1.0, 2.0]}, "prose": {"head_loss": [prose, 5.0]}}}) + "\n")
    lines = {line.get_label(): line for line in axes_of(tmp_path).lines}
    assert len(axes_of(tmp_path).lines) == plain + 2
    code, prose = (next(line for label, line in lines.items() if label.startswith(name)) for name in ("code", "prose"))
    assert list(code.get_xdata()) == [60, 70] and list(prose.get_xdata()) == [60]
    assert list(code.get_ydata()) == pytest.approx([1 / math.log(2)] * 2)
    assert prose.get_label() == f"prose, head 1: {4 / math.log(2):.2f}"


def test_line_that_is_still_written_is_left_out(tmp_path):
    write_run(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 60, "split": "tr')
    assert read_metrics(tmp_path)[-1]["step"] == 50


def test_nothing_to_plot_is_said(tmp_path):
    with pytest.raises(ValueError, match="metrics.jsonl is missing: is workdir='.*' the folder of a run"):
        plot_loss(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no line yet"):
        plot_loss(tmp_path)
    assert not (tmp_path / "plots").exists()


@given(st.lists(st.floats(-1e3, 1e3), max_size=60), st.integers(1, 60))
def test_smoothing_keeps_length_and_range(values, points):
    means = smooth(values, points=points)
    assert len(means) == len(values)
    assert all(min(values) - 1e-6 <= mean <= max(values) + 1e-6 for mean in means)


def test_smoothing_by_hand():
    assert smooth([1.0, 5.0, 3.0], points=150) == [1.0, 5.0, 3.0]
    assert smooth([0.0, 3.0, 6.0, 0.0, 3.0, 6.0], points=3) == pytest.approx([0.0, 3.0, 3.0, 3.0, 3.0, 4.5])


def test_importing_it_loads_no_matplotlib():
    code = "import sys, mtp_jax.analysis.loss_plot\nassert not {'matplotlib', 'jax'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
