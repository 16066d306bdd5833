"""What studies measure of a cell from the files of its folder, and how their rules compare groups of rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.analysis.loss_plot import read_metrics
from mtp_jax.analysis.study import CONFIRMED, NOT_CONFIRMED, SEED, UNDECIDABLE, Row
from mtp_jax.intervals import Estimate, mean_estimate


def last_validation(folder: epath.PathLike) -> dict[str, float]:
    """Returns the numbers of a run's last validation: head_loss_1 to N (nats), bits_per_byte_1 (of a byte model),
    head_agreement_2 to N and expected_accepted_length; heads that rest are left out.

    Raises:
      ValueError: the run has no validation.
    """
    records = [record for record in read_metrics(folder) if record["split"] == "validation"]
    if not records:
        raise ValueError(f"{folder} has no validation line in metrics.jsonl.")
    last, found = records[-1], dict[str, float]()
    bits = last.get("validation_bits_per_byte")
    if bits and bits[0] is not None:
        found["bits_per_byte_1"] = bits[0]
    found |= {f"head_loss_{k}": loss for k, loss in enumerate(last["head_loss"], 1) if loss is not None}
    found |= {f"head_agreement_{k}": share for k, share in enumerate(last.get("head_agreement", ()), 1)
              if share is not None and k > 1}
    if last.get("expected_accepted_length") is not None:
        found["expected_accepted_length"] = last["expected_accepted_length"]
    return found


def evaluation(folder: epath.PathLike, task: str) -> dict[str, float]:
    """Returns the metrics of an evaluation task.

    Raises:
      ValueError: it was not run, or its file is damaged.
    """
    path = epath.Path(folder) / "eval" / f"{task}.json"
    try:
        return dict(json.loads(path.read_text())["metrics"])
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it and run the study again.") from error


def column(rows: Sequence[Row], name: str, **group: Any) -> dict[int, float]:
    """Returns {seed: value} of the rows of a group.

    Args:
      rows: of a study.
      name: of the column.
      group: values that the rows have, such as num_heads=4.

    Raises:
      ValueError: there is no such row, or one lacks the column or has a seed twice.
    """
    found: dict[int, float] = {}
    for row in rows:
        if all(row.get(key) == value for key, value in group.items()):
            if row.get(name) is None or row[SEED] in found:
                raise ValueError(f"A row of {group} with seed {row[SEED]} has no {name}, or is there twice.")
            found[row[SEED]] = row[name]
    if not found:
        raise ValueError(f"No row has {group}.")
    return found


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate:
    """Returns the mean of first - second over their seeds, paired, with its 95 % interval.

    Raises:
      ValueError: their seeds differ.
    """
    if first.keys() != second.keys():
        raise ValueError(f"Seeds {sorted(first)} cannot be paired with {sorted(second)}.")
    return mean_estimate([first[seed] - second[seed] for seed in sorted(first)])


def outcome(estimates: Sequence[Estimate]) -> str:
    """Returns the outcome of a claim that says of each estimate that it is above 0.

    Confirmed where every interval lies above 0, not confirmed where one lies below 0, else not decidable: some interval
    holds 0, or a single seed leaves none.
    """
    if all(one.low > 0 for one in estimates):
        return CONFIRMED
    if any(one.high < 0 for one in estimates):
        return NOT_CONFIRMED
    return UNDECIDABLE


RULE = ("Paired by seed, 95 % intervals of Student's t. Confirmed: {}. Not confirmed: one of these intervals lies "
        "wholly on the other side of 0. Else not decidable at this size.")


def mean_of(values: Mapping[int, float]) -> float:
    """Returns the mean over seeds."""
    return math.fsum(values.values()) / len(values)
