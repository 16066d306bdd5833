"""A sweep's table and chart: which numbers come from where, and what is drawn."""

import csv
import json
import math
import pathlib
import struct

import pytest

from mtp_jax.analysis import sweep_plot, sweep_results
from mtp_jax.analysis.sweep_cells import Cell
from mtp_jax.analysis.sweep_record import SweepRecord
from mtp_jax.config import dumps, from_dict

NUM_HEADS, SEED = "config.model.num_heads", "config.train.seed"


def make_cell(folder, *, num_heads=1, seed=0, source="stdlib"):
    config = from_dict({"model": {"num_heads": num_heads, "vocab_size": 259}, "data": {"batch_size": 2, "seq_len": 50},
                        "train": {"num_steps": 20, "seed": seed}})
    values = {"model.num_heads": str(num_heads), "train.seed": str(seed)}
    name = f"num_heads={num_heads},seed={seed}"
    return Cell(name, values, (), config, str(folder / name))


def write_run(cell, *, steps=20, rates=(None, 100.0, 400.0, 200.0), in_bytes=True, validated=True):
    """Writes a run whose head k has the held-out loss n + k ln 2."""
    folder, n = pathlib.Path(cell.workdir), cell.config.model.num_heads
    (folder / "checkpoints" / str(steps)).mkdir(parents=True)
    (folder / "config.json").write_text(dumps(cell.config, version="0", corpus_hash="x"))
    lines = [{"step": steps - len(rates) + place, "split": "train", "loss": 9.0 - place, "head_loss": [1.0] * n,
              "tokens_per_second": rate, "mfu": None} for place, rate in enumerate(rates, 1)]
    losses = [n + k * math.log(2) for k in range(1, n + 1)]
    tested = {"step": steps, "split": "validation", "loss": sum(losses), "head_loss": losses, "tokens_per_second": None,
              "head_agreement": [1.0] + [0.5 / k for k in range(2, n + 1)], "expected_accepted_length": 1 + n / 4}
    if in_bytes:
        tested["validation_bits_per_byte"] = [loss / math.log(2) for loss in losses]
    (folder / "metrics.jsonl").write_text("".join(
        json.dumps(line) + "\n" for line in [*lines, *([tested] if validated else [])]))


@pytest.fixture
def cells(tmp_path):
    """Cells of 1, 2 and 4 heads and two seeds; that of four heads and seed 1 has not begun."""
    made = [make_cell(tmp_path, num_heads=n, seed=seed) for n in (1, 2, 4) for seed in (0, 1)]
    for cell in made[:-1]:
        write_run(cell)
    return made


def test_the_csv_has_a_row_a_cell_with_numbers_of_the_workdirs(cells, tmp_path):
    record = SweepRecord(tmp_path)
    record[cells[2].name].seconds = 12.5
    path = sweep_results.write_csv(sweep_results.rows(cells, record), tmp_path)
    assert path == tmp_path / "sweep.csv"
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "cell", NUM_HEADS, SEED, "status", "step", "num_steps", "params", "train_loss", "validation_loss",
        *(f"head_loss_{k}" for k in (1, 2, 3, 4)), *(f"bits_per_byte_{k}" for k in (1, 2, 3, 4)),
        *(f"head_agreement_{k}" for k in (2, 3, 4)), "expected_accepted_length", "step_seconds", "tokens_per_second",
        "mfu", "wall_seconds", "workdir"]
    assert [row["status"] for row in rows] == ["done"] * 5 + ["waiting"]
    two = rows[2]
    assert (two[NUM_HEADS], two[SEED], two["step"], two["num_steps"]) == ("2", "0", "20", "20")
    assert two["train_loss"] == "5" and float(two["head_loss_1"]) == pytest.approx(2 + math.log(2), rel=1e-5)
    assert float(two["bits_per_byte_2"]) == pytest.approx(2 / math.log(2) + 2, rel=1e-5)
    assert float(two["validation_loss"]) == pytest.approx(4 + 3 * math.log(2), rel=1e-5)
    assert (two["head_agreement_2"], two["expected_accepted_length"]) == ("0.25", "1.5")
    assert (two["tokens_per_second"], two["step_seconds"], two["wall_seconds"]) == ("200", "0.5", "12.5")
    assert two["head_loss_3"] == two["mfu"] == "" and two["workdir"] == cells[2].workdir
    assert rows[0]["expected_accepted_length"] == "1" and rows[0]["wall_seconds"] == ""
    layer = 4 * 256 * 256 + 3 * 256 * 768 + 2 * 256
    assert {row["params"] for row in rows[:5]} == {str(6 * layer + 2 * 384 * 256 + 256)}
    assert rows[5]["params"] == rows[5]["head_loss_1"] == "" and rows[5]["step"] == "0"


def test_what_a_cell_lacks_is_empty_and_what_it_was_is_told(tmp_path):
    cell = make_cell(tmp_path, num_heads=2)
    write_run(cell, steps=10, rates=(None,), validated=False)
    record = SweepRecord(tmp_path)
    (row,) = sweep_results.rows([cell], record)
    assert row["status"] == "unfinished" and row["step"] == 10 and row["train_loss"] == 8.0
    assert row["validation_loss"] is None and row["step_seconds"] is None and "head_loss_1" not in row
    record[cell.name].status = "failed"
    assert sweep_results.rows([cell], record)[0]["status"] == "failed"
    head, line = sweep_results.table_lines([row])
    assert head.startswith("cell") and "head 1, nats" in head and "10/20" in line and line.rstrip().endswith("-")


def test_the_table_of_a_terminal_is_in_bits_where_tokens_are_bytes(cells, tmp_path):
    lines = sweep_results.table_lines(sweep_results.rows(cells, SweepRecord(tmp_path)))
    assert len(lines) == 7 and "head 1, bits/byte" in lines[0]
    assert "3.885" in lines[3] and "1.50" in lines[3] and "500" in lines[3]


def test_curves_are_over_the_heads_and_seeds_are_one_point(cells, tmp_path):
    table = sweep_results.rows(cells, SweepRecord(tmp_path))
    assert sweep_plot.x_field([SEED, NUM_HEADS]) == NUM_HEADS and sweep_plot.x_field([SEED]) == SEED
    (curve,) = sweep_plot.series(table, [SEED, NUM_HEADS], "expected_accepted_length").values()
    assert curve == {1: [1.0, 1.0], 2: [1.5, 1.5], 4: [2.0]}


def test_the_chart_has_loss_acceptance_and_time(cells, tmp_path):
    table = sweep_results.rows(cells, SweepRecord(tmp_path))
    path = sweep_plot.plot(table, [NUM_HEADS, SEED], tmp_path, title="t")
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (1210, 440)
    loss, acceptance, seconds = sweep_plot._figure(table, [NUM_HEADS, SEED], title="t").axes
    drawn = [list(line.get_ydata()) for line in loss.lines]
    assert drawn[0] == pytest.approx([n / math.log(2) + 1 for n in (1, 2, 4)])
    assert len(drawn) == 3 and drawn[1] == [drawn[0][0]] * 2  # the two seeds
    assert [text.get_text() for text in loss.get_xticklabels()] == ["1", "2", "4"]
    assert list(acceptance.lines[0].get_ydata()) == [1, 2, 4]  # every draft accepted
    assert list(acceptance.lines[1].get_ydata()) == [1.0, 1.5, 2.0]
    assert list(seconds.lines[0].get_ydata()) == [500.0] * 3 and seconds.get_ylim()[0] == 0
    assert loss.get_ylabel() == "bits per byte" and seconds.get_ylabel().startswith("milliseconds")


def test_another_axis_makes_a_curve_of_its_own_and_words_are_ticks(tmp_path):
    base = {"head_loss_1": 1.0, "expected_accepted_length": None, "step_seconds": None}
    table = [{**base, NUM_HEADS: n, "config.model.head_kind": kind} for n in (4, 2) for kind in ("parallel", "linear")]
    fields = ["config.model.head_kind", NUM_HEADS]
    axes = sweep_plot._figure(table, fields, title="t").axes
    assert [line.get_label() for line in axes[0].lines] == ["head_kind=parallel", "head_kind=linear"]
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["2", "4"] and not len(
        axes[2].lines[0].get_xdata())
    axes = sweep_plot._figure(table[:2], fields[:1], title="t").axes
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["linear", "parallel"]
    assert axes[0].get_xlabel() == "config.model.head_kind" and axes[0].get_ylabel() == "nats per token"


def test_without_a_number_there_is_no_chart(tmp_path):
    cell = make_cell(tmp_path)
    table = sweep_results.rows([cell], SweepRecord(tmp_path))
    assert sweep_plot.plot(table, [NUM_HEADS], tmp_path, title="t") is None and not (tmp_path / "sweep.png").exists()
