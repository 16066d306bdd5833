"""Points that scaling laws are fitted to: one measured loss each, with the size and the data that it took.

Columns (float64 but for `run` and `phase`, which are text):

    run     the training run; the unit that intervals resample
    N       parameters; of runs read here those of trunk and heads, without embedding, unembedding and final norm
    D       tokens trained on so far
    loss    nats per token
    n       prediction heads; 1 where a table does not say
    head    k, the head whose loss it is; 1
    T       T_m, times that the trunk is run; 1
    loop    the loop whose loss it is; T
    N_rec, N_once   parameters that are run T times, and once
    N_head1         parameters without those of heads 2 to n
    phase   warmup, stable or decay, of the learning rate
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from mtp_jax.config import check_choice, nearest

REQUIRED = ("N", "D", "loss")
TEXT = ("run", "phase")
COLUMNS = (*REQUIRED, "n", "head", "T", "loop", "N_rec", "N_once", "N_head1", *TEXT)
SELECTORS = ("largest_N", "largest_n", "largest_T", "last_half", "fraction=0.2")
OF_A_RUN = ("N", "n", "T", "N_rec", "N_once", "N_head1", "run")  # columns that are the same all along a run

_COMPARE: dict[str, Callable[..., np.ndarray]] = {">=": operator.ge, "<=": operator.le, "!=": operator.ne,
                                                  "=": operator.eq, ">": operator.gt, "<": operator.lt}


@dataclasses.dataclass(frozen=True)
class Points:
    """Measured losses, a column each of what the module's page names.

    Attributes:
      columns: {name: values}, all of one length. run, N, D and loss are needed; n, head, T and loop are filled in.

    Raises:
      ValueError: a needed column is missing, lengths differ, or a value is not positive and finite.
    """

    columns: Mapping[str, np.ndarray]

    def __post_init__(self):
        missing = [name for name in ("run", *REQUIRED) if name not in self.columns]
        if missing:
            raise ValueError(f"The points have no column {', '.join(missing)}; they have {', '.join(self.columns)}.")
        own = {name: np.asarray(values, str if name in TEXT else np.float64) for name, values in self.columns.items()}
        size = len(own["loss"])
        for name in ("n", "head", "T"):
            own.setdefault(name, np.ones(size))
        own.setdefault("loop", own["T"])
        for name, values in own.items():
            if values.shape != (size,):
                raise ValueError(f"The column {name} has the shape {values.shape}, and loss has {size} values.")
            if name not in TEXT and not np.all(_in_range(name, values)):
                place = int(np.argmin(_in_range(name, values)))
                raise ValueError(_out_of_range(name, values[place], f"point {place + 1} ({own['run'][place]})"))
        object.__setattr__(self, "columns", own)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.columns:
            raise ValueError(f"The points have no column {name!r}; they have {', '.join(self.columns)}."
                             f"{nearest(name, self.columns)}")
        return self.columns[name]

    def __len__(self) -> int:
        return len(self.columns["loss"])

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, in the order of their first points."""
        return tuple(dict.fromkeys(self.columns["run"].tolist()))

    def select(self, mask: np.ndarray) -> Points:
        """Returns the points where a mask is true, or those of an array of indices."""
        return Points({name: values[mask] for name, values in self.columns.items()})

    def along_runs(self) -> bool:
        """Tells whether a run has points at several D, not its end alone."""
        return len(self) > len({(run, head, loop) for run, head, loop in zip(
            self["run"].tolist(), self["head"].tolist(), self["loop"].tolist())})


def join(parts: Iterable[Points]) -> Points:
    """Returns the points of all parts, with the columns that all of them have."""
    parts = list(parts)
    if not parts:
        raise ValueError("There are no points to join.")
    names = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    return Points({name: np.concatenate([part[name] for part in parts]) for name in names})


def read_csv(path: epath.PathLike, *, columns: Mapping[str, str] | None = None, run: str = "",
             keep: Sequence[str] = ()) -> Points:
    """Returns the points of a table with a header.

    Args:
      path: the file; may lie in a bucket.
      columns: {column of the points: the file's name for it}, such as {"N": "N_params"}; those not named are taken
        under their own names where the file has them.
      run: the file's column that names the run; empty: "run" if there is one, else each row is a run of its own.
      keep: conditions on the file's columns, such as "kept=1" or "lr>=0.001"; rows that fail one are left out.

    Returns:
      The points, in the order of the rows.

    Raises:
      ValueError: a column is missing, a value is no number, not finite or not positive, or no row is left.
    """
    path, columns = epath.Path(path), {**(columns or {}), **({"run": run} if run else {})}
    for name in columns:
        check_choice("--columns", name, COLUMNS)
    if not path.is_file():
        raise ValueError(f"{path} is not a file: name a table of N, D and loss, with commas and a header.")
    reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""))
    there = list(reader.fieldnames or ())
    names = {name: columns.get(name, name) for name in COLUMNS if name in (*REQUIRED, *columns) or name in there}
    for name, own in names.items():
        if own not in there:
            raise ValueError(_missing(path, name, own, there))
    rows = [(reader.line_num, row) for row in reader]
    for condition in keep:
        chosen = matches({name: np.asarray([row[name] or "" for _, row in rows]) for name in there}, condition,
                         where=str(path))
        rows = [row for row, kept in zip(rows, chosen) if kept]
    if not rows:
        raise ValueError(f"{path} has no row" + (f" with {', '.join(keep)}: look at --keep." if keep else "."))
    values = {name: np.asarray([row[own] if name in TEXT else _number(name, row[own], f"{path}, line {line}, column "
                                                                      f"{own}") for line, row in rows])
              for name, own in names.items()}
    values.setdefault("run", np.asarray([f"line {line}" for line, _ in rows]))
    return Points(values)


def matches(columns: Mapping[str, np.ndarray], condition: str, *, where: str = "") -> np.ndarray:
    """Returns the mask of a condition NAME OP VALUE, with OP one of = != > >= < <=.

    Args:
      columns: {name: values}; text that holds numbers is compared as numbers where VALUE is one.
      condition: such as "phase=stable" or "N>1e9".
      where: what the columns are of, for errors.

    Raises:
      ValueError: it is no such condition, or there is no such column.
    """
    found = re.fullmatch(r"\s*([^<>=!]+?)\s*(>=|<=|!=|==?|>|<)\s*(.+?)\s*", condition)
    if not found:
        raise ValueError(f"{condition!r} is no condition: write it as COLUMN=VALUE, or with > >= < <= !=.")
    name, sign, text = found[1], found[2].replace("==", "="), found[3]
    if name not in columns:
        raise ValueError(f"{where or 'The points'} has no column {name!r} for the condition {condition!r}; there are "
                         f"{', '.join(columns)}.{_similar(name, list(columns))}")
    wanted, values = _float(text), columns[name]
    if math.isnan(wanted):
        if sign not in ("=", "!="):
            raise ValueError(f"{condition!r}: {text!r} is no number, so it can be compared by = and != alone.")
        return _COMPARE[sign](values.astype(str), text)
    if values.dtype.kind != "f":
        values = np.asarray([_float(value) for value in values.tolist()])
    return _COMPARE[sign](values, wanted)


def held_out(points: Points, selector: str, *, seed: int = 0) -> np.ndarray:
    """Returns the mask of the points that a fit is not to see.

    Args:
      points: all of them.
      selector: "" (none); "largest_N", "largest_n" or "largest_T" (all runs with the largest value); "last_half" (the
        points past half of their run's D); "fraction=0.2" (a fifth of the runs, drawn); a condition such as "N>1e9".
        Several with commas: what any of them holds out.
      seed: of the draw.

    Raises:
      ValueError: the selector is none of these, or leaves nothing to fit or nothing held out.
    """
    mask = np.zeros(len(points), bool)
    parts = [part.strip() for part in selector.split(",") if part.strip()]
    for part in parts:
        mask |= _held_out(points, part, seed)
    if parts and (mask.all() or not mask.any()):
        what = "all points: none is left to fit" if mask.all() else "no point"
        hint = " A run with one point has no last half." if "last_half" in parts and not points.along_runs() else ""
        raise ValueError(f"--hold_out={selector} holds out {what}.{hint}")
    return mask


def last_half(points: Points) -> np.ndarray:
    """Returns the mask of the points past half of the greatest D that their run has among these points."""
    _, run = np.unique(points["run"], return_inverse=True)
    end = np.zeros(run.max() + 1)
    np.maximum.at(end, run, points["D"])
    return points["D"] > end[run] / 2


def _held_out(points: Points, part: str, seed: int) -> np.ndarray:
    """Returns the mask of one selector."""
    if part.startswith("largest_"):
        check_choice("--hold_out", part, SELECTORS[:3])
        values = points[part.removeprefix("largest_")]
        return values == values.max()
    runs, inverse = np.unique(points["run"], return_inverse=True)
    if part == "last_half":
        return last_half(points) & (np.bincount(inverse)[inverse] > 1)
    name, _, text = part.partition("=")
    if name == "fraction":
        share = _float(text)
        if not 0 < share < 1:
            raise ValueError(f"--hold_out={part}: the fraction of the runs must lie between 0 and 1.")
        count = min(max(1, round(share * len(runs))), len(runs))
        return np.isin(inverse, np.random.default_rng(seed).permutation(len(runs))[:count])
    if not re.search("[<>=]", part):
        check_choice("--hold_out", part, SELECTORS)
    return matches(points.columns, part)


def _in_range(name: str, values: np.ndarray) -> np.ndarray:
    """Returns where the values of a column can be right: finite, and positive, but N_once may be 0."""
    return np.isfinite(values) & ((values > 0) | ((values == 0) & (name in ("N_once", "N_rec"))))


def _out_of_range(name: str, value: float, where: str) -> str:
    """Returns what is wrong with a value, and what to do."""
    remedy = "leave the row out with --keep, or correct it"
    if not math.isfinite(value):
        return f"{where}: {name} is {value}, which is not finite: {remedy}."
    return f"{where}: {name} is {value:g} and must be above 0, for laws take its logarithm: {remedy}."


def _number(name: str, text: str | None, where: str) -> float:
    """Returns a number of a table; ValueError names the file, the line and what is wrong."""
    try:
        value = float(text or "")
    except ValueError as error:
        raise ValueError(f"{where}: {text!r} is no number: leave the row out with --keep, or correct it.") from error
    if not _in_range(name, np.asarray(value)):
        raise ValueError(_out_of_range(name, value, where))
    return value


def _float(text: str) -> float:
    """Returns a number, or nan where the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _missing(path: epath.Path, name: str, own: str, there: Sequence[str]) -> str:
    """Returns the error of a column that a file does not have."""
    similar = _similar(own, there)
    taken = re.search('"(.+)"', similar)
    return (f"{path} has no column {own!r} for {name}; it has {', '.join(there)}.{similar} Name it: "
            f"--columns={name}={taken[1] if taken else 'ITS_NAME'}.")


def _similar(name: str, there: Sequence[str]) -> str:
    """Returns ` Did you mean "x"?`, for columns that have the name as a word before those that look like it."""
    for column in there:
        if name.lower() in re.split(r"[^a-z0-9]+", column.lower()):
            return f' Did you mean "{column}"?'
    return nearest(name, there)
