"""What a study came to: rows of its cells, verdicts, study.json, study.csv, pictures, and the page for the docs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import platform
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.analysis.study import SEED, Row, Study, Verdict
from mtp_jax.files import replace
from mtp_jax.intervals import Estimate, mean_estimate

JSON_FILE, CSV_FILE = "study.json", "study.csv"


def measure(study: Study, folders: Mapping[str, str], done: Sequence[str],
            tell: Callable[[str], None]) -> dict[str, Row]:
    """Returns {cell's name: row} of the cells that are done; one that cannot be measured is told and left out."""
    rows = {}
    for cell in study.cells:
        if cell.name in done:
            try:
                rows[cell.name] = {**cell.values, **study.measure(epath.Path(folders[cell.name]))}
            except (ValueError, OSError) as error:
                tell(f"{cell.name} cannot be measured: {error}")
    return rows


def judge(study: Study, rows: Mapping[str, Row]) -> dict[str, Verdict]:
    """Returns {claim's name: verdict}; empty while cells are missing, for a rule is about all of them."""
    if len(rows) < len(study.cells):
        return {}
    return {claim.name: claim.judge(list(rows.values())) for claim in study.claims}


def write(study: Study, folder: epath.PathLike, *, rows: Mapping[str, Row], verdicts: Mapping[str, Verdict],
          folders: Mapping[str, str], costs: Mapping[str, float], settings: Sequence[str] = ()) -> list[epath.Path]:
    """Writes study.json and study.csv, and the pictures once all cells are there; returns their paths."""
    folder = epath.Path(folder)
    cells = [{"name": cell.name, "experiment": cell.experiment, "settings": list(cell.settings),
              "folder": epath.Path(folders[cell.name]).name, "done": cell.name in rows,
              "cpu_seconds": costs.get(cell.name)} for cell in study.cells]
    claims = [{"name": claim.name, "statement": claim.statement, "rule": claim.rule,
               **(_plain(dataclasses.asdict(verdicts[claim.name])) if claim.name in verdicts else {"outcome": None})}
              for claim in study.claims]
    whole = {"study": study.name, "question": study.question, "settings_of_all": list(settings), "claims": claims,
             "rows": [_plain(row) for row in rows.values()], "cells": cells,
             "core_minutes": sum(costs.values()) / 60, "machine": machine()}
    paths = [replace(folder / JSON_FILE, json.dumps(whole, indent=2, allow_nan=False).encode() + b"\n")]
    if rows:
        paths.append(replace(folder / CSV_FILE, _csv(rows).encode()))
    if len(rows) == len(study.cells):
        paths += study.plot(list(rows.values()), folder)
    return paths


def lines(study: Study, rows: Mapping[str, Row], verdicts: Mapping[str, Verdict]) -> list[str]:
    """Returns what is printed at the end of a study: the table of means, and a verdict a claim."""
    found = [f"{study.name}: {study.question}", *_aligned(table(study, list(rows.values())))]
    for claim in study.claims:
        verdict = verdicts.get(claim.name)
        if verdict is None:
            found.append(f"{claim.name}: no verdict yet, {len(rows)} of {len(study.cells)} cells are there.")
            continue
        found.append(f"{claim.name}: {verdict.outcome}. {verdict.sentence}")
        found += [f"    {name}: {text(value)}" for name, value in verdict.figures.items()]
    return found


def report(study: Study, rows: Mapping[str, Row], verdicts: Mapping[str, Verdict], *, cost: float,
           pictures: Sequence[str] = ()) -> str:
    """Returns a study as Markdown for docs/experiments.md.

    Args:
      study: that ran.
      rows: of its cells.
      verdicts: of its claims.
      cost: seconds of a core that its cells took.
      pictures: paths as the page is to name them.
    """
    parts = [f"## {', '.join([*(claim.name for claim in study.claims), study.name])}", study.question]
    for claim in study.claims:
        verdict = verdicts.get(claim.name)
        outcome = f"no verdict, {len(rows)} of {len(study.cells)} cells are done" if verdict is None else \
            verdict.outcome
        parts += [f"**{claim.name}: {outcome}.**" + (f" {verdict.sentence}" if verdict else ""),
                  f"- Claim: {claim.statement}\n- Rule, written down before the run: {claim.rule}"]
        if verdict and verdict.figures:
            parts.append("\n".join(f"- {name}: {text(value)}" for name, value in verdict.figures.items()))
    if study.settings:
        parts.append(f"Settings: {study.settings}")
    cells = table(study, list(rows.values()))
    if len(cells) > 1:
        parts.append("\n".join(["| " + " | ".join(cells[0]) + " |", "| " + " | ".join("---" for _ in cells[0]) + " |",
                                *("| " + " | ".join(line) + " |" for line in cells[1:])]))
        parts.append("Means over seeds with 95 % intervals of Student's t.")
    parts.append(f"    python -m mtp_jax.study --experiment={study.name} --workdir=runs/experiments")
    parts.append(f"{len(rows)} of {len(study.cells)} cells, {cost / 60:.0f} core-minutes, those shared with other "
                 f"studies included. {machine()}.")
    parts += [f"![{study.question}]({picture})" for picture in pictures]
    return "\n\n".join(map(_wrapped, parts)) + "\n"


def _wrapped(part: str) -> str:
    """Returns a part of a Markdown page in lines of 120 letters; headings, tables, commands and pictures stay."""
    if part.startswith(("#", "|", "    ", "![")):
        return part
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="  " if line.startswith("- ") else "",
                                   break_long_words=False, break_on_hyphens=False) for line in part.split("\n"))


def table(study: Study, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Returns the table of a study: a line for each setting, the mean over seeds of each measured column."""
    if not rows:
        return []
    named = list(dict.fromkeys(name for cell in study.cells for name in cell.values if name != SEED))
    measured = list(study.columns) or [name for name in dict.fromkeys(name for row in rows for name in row)
                                       if name not in named and name != SEED]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in named), []).append(row)
    found = [(*named, "seeds", *measured)]
    for key, members in groups.items():
        found.append((*("" if value is None else str(value) for value in key), str(len(members)),
                      *(text(estimate(members, name)) for name in measured)))
    return found


def estimate(rows: Sequence[Row], column: str) -> Any:
    """Returns the mean of a column over rows with its interval; a text or nothing stays as it is in the first row."""
    values = [row[column] for row in rows if row.get(column) is not None]
    if not values or not all(isinstance(value, (int, float)) for value in values):
        return values[0] if values else None
    return mean_estimate(values)


def text(value: Any) -> str:
    """Returns a figure for people."""
    if isinstance(value, Estimate):
        mean, low, high = (_number(part) for part in (value.mean, value.low, value.high))
        return mean if math.isnan(value.low) else f"{mean} ({low} to {high})"
    return _number(value) if isinstance(value, float) else "-" if value is None else str(value)


def machine() -> str:
    """Returns the machine in words: processor, cores, Python and JAX."""
    from importlib import metadata

    name = platform.processor() or platform.machine()
    info = epath.Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                  if line.startswith("model name")]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, Python {platform.python_version()}, JAX {metadata.version('jax')}"


def _number(value: float) -> str:
    """Returns a number with three digits after the point, or three that count where it is small."""
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def _plain(value: Any) -> Any:
    """Returns a value as JSON knows it: what is not finite is null."""
    if isinstance(value, Estimate):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "item") and not isinstance(value, str):  # a number of numpy
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rows: Mapping[str, Row]) -> str:
    """Returns the rows as CSV, a column for each name that any row has."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, ["cell", *columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"cell": name, **{key: f"{value:.6g}" if isinstance(value, float) else value
                                       for key, value in row.items()}} for name, row in rows.items())
    return out.getvalue()


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines of text with aligned columns."""
    widths = [max(len(line[place]) for line in cells) for place in range(len(cells[0]))] if cells else []
    return ["    " + "   ".join(f"{part:>{width}}" for part, width in zip(line, widths)) for line in cells]
