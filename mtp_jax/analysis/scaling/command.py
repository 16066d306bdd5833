"""What `python -m mtp_jax.scaling` does: fit, predict, plot. The fields of the requests are the flags."""

from __future__ import annotations

import dataclasses
import glob
import math
import os
from typing import TYPE_CHECKING, Any

from mtp_jax.config import check_choice
from mtp_jax.config.generation import flag

if TYPE_CHECKING:
    from mtp_jax.analysis.scaling.points import Points

METHODS = ("both", "huber", "projection")
KINDS = ("auto", "grid", "points")


@dataclasses.dataclass(frozen=True)
class FitRequest:
    """What is fitted, to what."""

    law: str = flag("", "Law to fit: chinchilla; looped_total, looped_step, iso_depth (loops of the trunk); per_head, "
                    "head_one (number of heads). docs/scaling.md has the formulas.")
    csv: str = flag("", "Table with a header: a row a measured loss, with N (parameters), D (tokens) and loss (nats).")
    columns: tuple[str, ...] = flag((), "The table's own names, such as N=N_params,D=D_tokens,loss=val; what is not "
                                    "named is taken under its own name (N, D, loss, n, head, T, loop, run ..).")
    workdirs: tuple[str, ...] = flag((), "Folders of runs instead of a table, such as 'runs/cells/*'; may be repeated. "
                                     "Each validation line of metrics.jsonl is a point.")
    loss: str = flag("head_1", "Loss of runs that is fitted: head_1 (or head_2 ..), head_k (all heads, for per_head), "
                     "total (the objective), task (without its entropy term), loop (head 1 after each loop).")
    keep: tuple[str, ...] = flag((), "Points to keep, such as phase=stable or lr>=0.001; may be repeated, or with "
                                 "commas. Of a table its own columns, of runs those of docs/scaling.md.")
    hold_out: str = flag("", "Points that the fit is not to see: largest_N, largest_n, largest_T, last_half (of each "
                         "run), fraction=0.2 (of the runs), or a condition such as N>1e9. With commas: all of them.")
    fix: str = flag("", "Parameters to hold at a value, such as t3=0,gamma=1.")
    method: str = flag("both", "huber (of the log loss, by L-BFGS), projection (of variables), or both, which are "
                       "compared; told are the values of the lower objective, huber's where they agree.")
    draws: int = flag(200, "Resamples of the runs, for the intervals; 0: none.")
    confidence: float = flag(0.95, "Share of the resamples that an interval holds.")
    seed: int = flag(0, "Of the starting values, the resamples and --hold_out=fraction.")
    out: str = flag("", "File to write as JSON, for predict and plot.")

    def validate(self) -> None:
        """Raises ValueError where a flag cannot be used as it is."""
        if not self.law:
            raise ValueError("--law is missing: name the law to fit, such as --law=chinchilla.")
        if bool(self.csv) == bool(self.workdirs):
            raise ValueError("Give either --csv=FILE or --workdirs=FOLDERS: where are the measured losses?")
        if self.columns and not self.csv:
            raise ValueError(f"--columns={','.join(self.columns)} names columns of a table: give --csv=FILE, too.")
        if not self.out:
            raise ValueError("--out is missing: name the JSON file to write, such as --out=law.json.")
        check_choice("--method", self.method, METHODS)
        if self.draws < 0 or self.draws == 1:
            raise ValueError(f"--draws={self.draws} must be 0 (no intervals) or at least 2.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"--confidence={self.confidence} must lie between 0 and 1.")
        _check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class PredictRequest:
    """What is predicted."""

    fit: str = flag("", "JSON file that fit wrote.")
    N: float | None = flag(None, "Parameters, counted as in the fit.")
    D: float | None = flag(None, "Tokens trained on.")
    at: str = flag("", "Other columns that the law reads, such as n=4 or T=2,N_rec=4e8,N_once=1e8.")
    flops: float | None = flag(None, "Training FLOPs instead of N and D, C = 6 N D, of laws that read T or loop "
                               "6 (N_once + T N_rec) D with --at=T=4: tells the N and D of least loss for them.")

    def validate(self) -> None:
        """Raises ValueError where a flag cannot be used as it is."""
        if not self.fit:
            raise ValueError("--fit is missing: name the JSON file that the action fit wrote.")
        if self.flops is None and (self.D is None or self.N is None and "N_rec" not in self.at):
            raise ValueError("Give --N and --D, or --flops: what is to be predicted?")
        if self.flops is not None and (self.D is not None or self.N is not None):
            raise ValueError("--flops looks for N and D: leave out --N and --D.")
        for name in ("N", "D", "flops"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"--{name}={value} must be above 0, and finite.")


@dataclasses.dataclass(frozen=True)
class PlotRequest:
    """What is drawn."""

    fit: str = flag("", "JSON file that fit wrote.")
    out: str = flag("", "PNG file to write.")
    kind: str = flag("auto", "grid: a panel for each (n or T, N), loss over tokens; points: predicted over measured "
                     "loss; auto: a grid where there are curves along runs.")
    title: str = flag("", "Above the picture. Default: the law's formula.")

    def validate(self) -> None:
        """Raises ValueError where a flag cannot be used as it is."""
        if not self.fit or not self.out:
            raise ValueError(f"--{'out' if self.fit else 'fit'} is missing: plot needs --fit=FILE.json, which fit "
                             "wrote, and --out=FILE.png.")
        check_choice("--kind", self.kind, KINDS)


Request = FitRequest | PredictRequest | PlotRequest
ACTIONS: dict[str, type[Any]] = {"fit": FitRequest, "predict": PredictRequest, "plot": PlotRequest}


def run(request: Request) -> int:
    """Does what the command was asked for, prints it, and returns the exit status.

    Raises:
      ValueError: a flag, a file or the data do not fit; nothing is written then.
    """
    request.validate()
    if isinstance(request, FitRequest):
        return _fit(request)
    return _predict(request) if isinstance(request, PredictRequest) else _plot(request)


def _fit(request: FitRequest) -> int:
    from mtp_jax.analysis.scaling import result as results
    from mtp_jax.analysis.scaling.laws import get_law
    from mtp_jax.analysis.scaling.points import held_out
    from mtp_jax.analysis.scaling.workdirs import check_totals

    law = get_law(request.law)
    points = _read(request)
    warnings = check_totals(request.loss, law, points) if request.workdirs else ()
    mask = held_out(points, request.hold_out, seed=request.seed)
    found = results.analyse(law, points, held_out=mask, fixed=assignments("--fix", request.fix),
                            methods=METHODS[1:] if request.method == "both" else (request.method,),
                            draws=request.draws, confidence=request.confidence, seed=request.seed, warnings=warnings,
                            source={name: value for name, value in dataclasses.asdict(request).items() if value})
    path = results.write(found, request.out)
    print("\n".join([*results.lines(found), "", f"Written: {path}"]))
    return 0


def _read(request: FitRequest) -> Points:
    """Returns the points of the table or the runs, without those that --keep leaves out."""
    from mtp_jax.analysis.scaling.points import matches, read_csv

    keep = [part for text in request.keep for part in text.split(",") if part.strip()]
    if request.csv:
        columns = {name: own for text in request.columns for name, own in _pairs("--columns", text)}
        return read_csv(request.csv, columns=columns, keep=keep)
    from mtp_jax.analysis.scaling.workdirs import begun, read_workdirs

    folders = []
    for pattern in request.workdirs:
        matched = [pattern] if "://" in pattern else sorted(filter(os.path.isdir,
                                                                   glob.glob(os.path.expanduser(pattern))))
        if not matched:
            raise ValueError(f"--workdirs={pattern} is no folder: name folders of runs; * stands for any part of a "
                             "name, and wants quotes around it.")
        ready = [folder for folder in matched if begun(folder)] if glob.has_magic(pattern) else matched
        if len(ready) < len(matched):
            print(f"{len(matched) - len(ready)} folders of --workdirs={pattern} have no validation line: left out.")
        folders += ready
    points = read_workdirs(folders, loss=request.loss)
    for condition in keep:
        points = points.select(matches(points.columns, condition))
        if not len(points):
            raise ValueError(f"--keep={condition} leaves no point.")
    return points


def _predict(request: PredictRequest) -> int:
    from mtp_jax.analysis.scaling import result as results

    found = results.read(request.fit)
    if request.flops is not None:
        print("\n".join(results.optimal_lines(found, request.flops, assignments("--at", request.at))))
        return 0
    at = {name: value for name, value in (("N", request.N), ("D", request.D)) if value is not None}
    print("\n".join(results.prediction_lines(found, at | assignments("--at", request.at))))
    return 0


def _plot(request: PlotRequest) -> int:
    from mtp_jax.analysis.scaling import figure
    from mtp_jax.analysis.scaling import result as results

    found = results.read(request.fit)
    grid = figure.fits_a_grid(found.points) if request.kind == "auto" else request.kind == "grid"
    draw = figure.plot_grid if grid else figure.plot_points
    path = draw(found.points, found.predict(found.points), request.out, held_out=found.held_out,
                title=request.title or f"{found.fit.law}: {found.law.formula}")
    print(f"Written: {path}")
    return 0


def assignments(name: str, text: str) -> dict[str, float]:
    """Returns {name: number} of a flag such as "t3=0,gamma=1".

    Args:
      name: of the flag, for errors.
      text: its value.

    Raises:
      ValueError: a part is no NAME=NUMBER.
    """
    found = {}
    for key, value in _pairs(name, text):
        try:
            found[key] = float(value)
        except ValueError as error:
            raise ValueError(f"{name}={text}: {value!r} is no number; write it as {key}=1.5.") from error
        if not math.isfinite(found[key]):
            raise ValueError(f"{name}={text}: {key} must be finite.")
    return found


def _pairs(name: str, text: str) -> list[tuple[str, str]]:
    """Returns the (name, value) of a flag such as N=N_params,D=D_tokens."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not all(part.partition("=")):
            raise ValueError(f"{name}={text}: {part!r} is no NAME=VALUE.")
    return [(key.strip(), value.strip()) for key, _, value in (part.partition("=") for part in parts)]


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed={seed} must lie in [0, 2**32).")
