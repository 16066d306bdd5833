"""What `python -m mtp_jax.plan` does once its flags are read."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mtp_jax.config import Config
from mtp_jax.parallel.topology import GIB, Topology
from mtp_jax.planning import decode, fit, plan
from mtp_jax.planning.roofline import least_and_most

OK, DOES_NOT_FIT = 0, 1


def run(resolve: Callable[[Sequence[str]], Config], settings: Sequence[str], topology: Topology, *, experiment: str,
        mode: str, fit: bool, minutes: float) -> int:
    """Plans, prints the plan as JSON on stdout and a line for people on stderr.

    Args:
      resolve: from arguments "--config.PATH=VALUE" to the experiment's config.
      settings: those of the command line.
      topology: to plan for.
      experiment: its name.
      mode: "train" or "decode".
      fit: search for mesh, remat and microbatches.
      minutes: for the search to compile in.

    Returns:
      The exit status.

    Raises:
      ValueError: config and topology do not fit each other.
    """
    if fit and mode == "decode":
        raise ValueError("--fit searches for a train step; with --mode=decode name the mesh yourself.")
    if not minutes > 0:
        raise ValueError(f"--budget_minutes={minutes:g} must be above 0.")
    config = plan.resolve(resolve(settings))
    if fit:
        report, said = _fit(config, topology, settings, experiment, minutes)
    elif mode == "decode":
        report = decode.plan_decoding(config, topology, experiment=experiment)
        said = [decode.sentence(report)]
    else:
        report = plan.plan_training(config, topology, experiment=experiment)
        said = [sentence(report)]
        if report["fits"] is False:
            said.append(_what_would(config, topology, report))
    print("\n".join(said), file=sys.stderr, flush=True)
    show(report)
    return DOES_NOT_FIT if report["fits"] is False else OK


def show(report: dict[str, Any]) -> None:
    """Prints a report as JSON; a reader that has gone away is none of our business."""
    try:
        print(json.dumps(strict(report), indent=1, allow_nan=False), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end


def strict(value: Any) -> Any:
    """Returns what JSON can hold: None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: strict(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sentence(report: dict[str, Any]) -> str:
    """Returns what a plan comes to, for people."""
    needed, hbm = report["peak_bytes"], report["hbm_bytes"]
    if hbm is None:
        return f"Needs {needed / GIB:.2f} GiB a device."
    if report["fits"]:
        least, most = least_and_most(report["bound"])
        return (f"Fits: {needed / GIB:.2f} of {hbm / GIB:.2f} GiB a device; {least} {report['step_seconds']:.3g} s a "
                f"step, bound by {report['bound']}, so {most} {report['mfu']:.0%} MFU.")
    return (f"Does not fit: needs {needed / GIB:.2f} GiB a device, {report['over_bytes'] / GIB:.2f} GiB more than the "
            f"{hbm / GIB:.2f} GiB that it has.")


def _what_would(config: Config, topology: Topology, report: dict[str, Any]) -> str:
    """Returns what would make it fit."""
    found = fit.remedies(config, topology, report["peak_bytes"])
    return f"What would, by estimate: {'; or '.join(found)}. --fit searches and compiles what it finds."


def _fit(config: Config, topology: Topology, settings: Sequence[str], experiment: str, minutes: float
         ) -> tuple[dict[str, Any], list[str]]:
    """Returns the report of a search, and what to say of it."""
    found = fit.search(config, topology, settings, minutes,
                       lambda candidate: plan.plan_training(candidate, topology, experiment=experiment))
    reports = [one.report for one in found.tried if one.report is not None]
    if not reports:
        raise ValueError("--fit: none of the candidates can be built: " + "; ".join(
            f"{one.candidate.choice.mesh_text}: {one.problem}" for one in found.tried))
    said = [f"{found.considered} candidates ranked, {len(reports)} compiled in {found.seconds:.0f} s"
            + (f"; {found.stopped}" if found.stopped else "") + ".", fit.table(found)]
    details: dict[str, Any] = {"considered": found.considered, "compiled": len(reports),
                               "seconds": round(found.seconds, 1), "stopped": found.stopped,
                               "tried": [{"settings": one.candidate.choice.settings(), "problem": one.problem,
                                          "estimated_bytes": round(one.candidate.needed_bytes),
                                          "estimated_seconds": one.candidate.bounds.seconds,
                                          "peak_bytes": one.report and one.report["peak_bytes"],
                                          "step_seconds": one.report and one.report["step_seconds"],
                                          "fits": one.fits} for one in found.tried]}
    if found.best is None or found.best.report is None:
        report = min(reports, key=lambda one: one["peak_bytes"])
        last = next(one for one in found.tried if one.report is report)
        said += [sentence(report), _what_would(last.candidate.choice.apply(config), topology, report)]
        return report | {"fit": details | {"command": None, "largest_rows": 0}}, said
    command = fit.command(experiment, settings, found.best.candidate.choice)
    said += [sentence(found.best.report), f"By estimate a device has room for {found.largest_rows} rows at a time with "
             "this mesh and remat.", f"To run it: {command}"]
    return found.best.report | {"fit": details | {"command": command, "largest_rows": found.largest_rows}}, said
