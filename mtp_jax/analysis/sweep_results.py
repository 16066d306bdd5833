"""What a sweep came to: a row a cell from what the workdirs hold, as sweep.csv and as a table for a terminal."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.analysis.sweep_cells import Cell, Standing, num_params, standing
from mtp_jax.analysis.sweep_record import SweepRecord
from mtp_jax.files import replace

CSV_FILE = "sweep.csv"
Row = Mapping[str, Any]


def rows(cells: Sequence[Cell], record: SweepRecord) -> list[Row]:
    """Returns a row of numbers for each cell, also for those that have not begun; what is not known is None.

    Columns: cell; the swept fields as the config has them; status; step (of the newest checkpoint); num_steps; params;
    train_loss; of the last validation validation_loss, head_loss_1 to N (nats per token), bits_per_byte_1 to N where
    tokens are bytes, head_agreement_2 to N and expected_accepted_length; step_seconds, tokens_per_second and mfu, each
    the median over the train lines; wall_seconds, of all attempts on this machine; workdir.
    """
    return [_row(cell, standing(cell), record) for cell in cells]


def write_csv(table: Sequence[Row], folder: epath.PathLike) -> epath.Path:
    """Writes sweep.csv into a sweep's folder, whole or not at all, and returns its path."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(table), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
                     for row in table)
    return replace(epath.Path(folder) / CSV_FILE, text.getvalue().encode())


def table_lines(table: Sequence[Row]) -> list[str]:
    """Returns the numbers that a sweep over heads is about, one line a cell."""
    in_bytes = any(row.get("bits_per_byte_1") is not None for row in table)
    head = ("cell", "status", "step", "params", "head 1, bits/byte" if in_bytes else "head 1, nats",
            "tokens a forward", "ms a step", "tokens/s")
    lines = [head] + [(
        row["cell"], row["status"], f"{row['step']}/{row['num_steps']}", _text(row["params"], ","),
        _text(row.get("bits_per_byte_1" if in_bytes else "head_loss_1"), ".3f"),
        _text(row["expected_accepted_length"], ".2f"),
        _text(row["step_seconds"] and 1000 * row["step_seconds"], ",.0f"), _text(row["tokens_per_second"], ",.0f"))
        for row in table]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    return ["   ".join(f"{text:{'<' if place < 2 else '>'}{width}}" for place, (text, width) in
                       enumerate(zip(line, widths))).rstrip() for line in lines]


def _row(cell: Cell, now: Standing, record: SweepRecord) -> dict[str, Any]:
    """Returns the row of a cell."""
    train = [line for line in now.records if line["split"] == "train"]
    tested: Mapping[str, Any] = next((line for line in reversed(now.records) if line["split"] == "validation"), {})
    speeds = _median(train, "tokens_per_second")
    known = record[cell.name]
    row: dict[str, Any] = {"cell": cell.name, **swept_values(cell)}
    status = "failed" if now.problem else known.status or ("unfinished" if now.step else "waiting")
    row |= {"status": "done" if now.done else status,
            "step": now.step, "num_steps": cell.num_steps,
            "params": num_params(now.config) if now.config is not None else None,
            "train_loss": train[-1]["loss"] if train else None, "validation_loss": tested.get("loss")}
    row |= _by_head("head_loss", tested.get("head_loss"))
    row |= _by_head("bits_per_byte", tested.get("validation_bits_per_byte"))
    row |= _by_head("head_agreement", tested.get("head_agreement"), first=2)
    return row | {
        "expected_accepted_length": 1.0 if len(tested.get("head_loss", ())) == 1
        else tested.get("expected_accepted_length"),
        "step_seconds": speeds and cell.config.data.batch_size * cell.config.data.seq_len / speeds,
        "tokens_per_second": speeds, "mfu": _median(train, "mfu"),
        "wall_seconds": known.seconds or None, "workdir": cell.workdir}


def swept_values(cell: Cell) -> dict[str, Any]:
    """Returns {"config.PATH": value} of the swept fields; of an experiment's own parameter, the text."""
    found: dict[str, Any] = {}
    for field, text in cell.values.items():
        section, _, name = field.partition(".")
        found[f"config.{field}"] = getattr(getattr(cell.config, section), name) if name else text
    return found


def _by_head(name: str, values: Sequence[float | None] | None, *, first: int = 1) -> dict[str, float | None]:
    """Returns {name_k: value of head k} from head `first` on."""
    return {f"{name}_{k}": value for k, value in enumerate(values or (), 1) if k >= first}


def _columns(table: Sequence[Row]) -> list[str]:
    """Returns the columns of all rows: those of heads that only some rows have stand beside their like."""
    longest = max(table, key=len)
    known: dict[str, list[str]] = {}
    for row in table:
        for name in row:
            known.setdefault(_kind(name), [])
            if name not in known[_kind(name)]:
                known[_kind(name)].append(name)
    order = list(dict.fromkeys([_kind(name) for name in longest] + list(known)))
    return [name for kind in order for name in known[kind]]


def _kind(name: str) -> str:
    """Returns a column's name without the number of a head."""
    stem, _, number = name.rpartition("_")
    return stem if number.isdecimal() and "." not in name else name


def _median(records: Sequence[Mapping[str, Any]], field: str) -> float | None:
    """Returns the median of a field over the records that have it."""
    values = [record[field] for record in records if record.get(field) is not None]
    return statistics.median(values) if values else None


def _text(value: float | None, form: str) -> str:
    """Returns a number as text; a dash for None."""
    return "-" if value is None else f"{value:{form}}"
