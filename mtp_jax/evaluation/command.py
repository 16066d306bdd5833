"""What `python -m mtp_jax.evaluate` does: runs a task, writes its result and prints a table."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING

from mtp_jax.config import EvaluationConfig
from mtp_jax.evaluation.progress_file import progress_path
from mtp_jax.evaluation.registry import TASKS, get_task
from mtp_jax.evaluation.request import Request, output_path
from mtp_jax.evaluation.task import DRAWING_FLAGS, Result
from mtp_jax.files import REMOTE, replace

if TYPE_CHECKING:
    from mtp_jax.decoding import DecodingModel

LISTED = 5  # errors that are printed; the result holds all


def run(config: EvaluationConfig) -> int:
    """Does what the command was asked for; returns the exit status.

    Raises:
      ValueError, OSError, CheckpointError: nothing was evaluated.
    """
    print(listing() if config.list else evaluate(config))
    return 0


def evaluate(config: EvaluationConfig, *, model: DecodingModel | None = None) -> str:
    """Runs a task, writes its result and returns lines to print.

    Args:
      config: the flags.
      model: loaded already; None: that of the workdir.

    Raises:
      ValueError, OSError, CheckpointError: nothing was evaluated.
    """
    config.validate()
    task = get_task(config.task)
    for flag in DRAWING_FLAGS:
        if getattr(config, flag) not in (None, "", ()) and flag not in task.drawing_flags:
            raise ValueError(f"--{flag} is not read by --task={config.task}, which draws no such completions: leave it "
                             "out.")
    request = Request(config, task.options(config.set), model=model)
    if task.data_help and not task.data_help.startswith("optional"):
        task.data(request)
    path = output_path(config)
    if REMOTE not in str(path) and path.is_dir():
        raise ValueError(f"--output={path} is a folder: name a file.")
    result = task.run(request)
    replace(path, (json.dumps(_plain(result.to_json()), indent=1, allow_nan=False) + "\n").encode())
    progress_path(path).unlink(missing_ok=True)
    for error in result.errors[:LISTED]:
        print(f"{error['task_id']}: {error['error']}", file=sys.stderr)
    if len(result.errors) > LISTED:
        print(f"... and {len(result.errors) - LISTED} more; {path} lists them.", file=sys.stderr)
    return "\n".join([*table(result), f"Wrote {path}"])


def table(result: Result) -> list[str]:
    """Returns the numbers of a result, a line each, with their intervals."""
    failed = f", {len(result.errors)} of them could not be evaluated" if result.errors else ""
    lines = [f"{result.task}: {len(result.samples)} samples{failed}"]
    width = max((len(name) for name in result.metrics.values), default=0)
    for name, value in result.metrics.values.items():
        between = result.metrics.intervals.get(name)
        told = f"   [{between[0]:.4f}, {between[1]:.4f}]" if between is not None else ""
        lines.append(f"    {name:{width}}   {value:.4f}{told}")
    return lines


def listing() -> str:
    """Returns all tasks, what their data are and what can be set of them."""
    lines = []
    for name in sorted(TASKS):
        task = get_task(name)
        lines.append(f"{name}: {task.about}")
        if task.data_help:
            lines.append(f"    --data: {task.data_help}")
        lines += [f"    --set={setting.name}={setting.default}: {setting.help}" for setting in task.settings]
    return "\n".join(lines)


def _plain(value: object) -> object:
    """Returns what JSON can hold: NaN and infinities, which it cannot, become null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
