"""What `python -m mtp_jax.plan` does once its flags are read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from mtp_jax.config import Config
from mtp_jax.parallel.topology import GIB, Topology
from mtp_jax.planning import plan

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
      fit: search for batch, remat and mesh.
      minutes: for the search to compile in.

    Returns:
      The exit status.

    Raises:
      ValueError: config and topology do not fit each other.
    """
    report = plan.plan_training(resolve(settings), topology, experiment=experiment)
    print(json.dumps(report, indent=1))
    print(sentence(report), file=sys.stderr)
    return DOES_NOT_FIT if report["fits"] is False else OK


def sentence(report: dict[str, Any]) -> str:
    """Returns what a plan comes to, for people."""
    needed, hbm = report["peak_bytes"], report["hbm_bytes"]
    if hbm is None:
        return f"Needs {needed / GIB:.2f} GiB a device."
    if report["fits"]:
        return (f"Fits: {needed / GIB:.2f} of {hbm / GIB:.2f} GiB a device; at least {report['step_seconds']:.3g} s a "
                f"step, bound by {report['bound']}, so at most {report['mfu']:.0%} MFU.")
    return (f"Does not fit: needs {needed / GIB:.2f} GiB a device, {report['over_bytes'] / GIB:.2f} GiB more than it "
            "has.")
