"""Points for scaling laws from trained runs: sizes from config.json, losses from the validation lines of metrics."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mtp_jax.analysis.loss_plot import METRICS_FILE, read_metrics
from mtp_jax.analysis.scaling.laws import Law
from mtp_jax.analysis.scaling.points import Points, join
from mtp_jax.config import Config, ModelConfig, check_choice, from_dict, with_defaults

LOSSES = ("head_1", "head_k", "total", "task", "loop")  # head_2, head_3 .. too


def read_workdirs(paths: Sequence[epath.PathLike], *, loss: str = "head_1") -> Points:
    """Returns a point for each validation line of runs; no checkpoint is read.

    Args:
      paths: folders of runs; may lie in a bucket.
      loss: nats per token: "head_1" (or head_2 ..; of a looped trunk after its last loop); "head_k" (a point a head);
        "total" (the objective, entropy term included); "task" (the objective without that term); "loop" (head 1 after
        each loop, a point a loop). "total" and "task" are sums over heads: they cannot be compared across n.

    Returns:
      All columns of the points but those that do not apply. D is step x batch_size x seq_len.

    Raises:
      ValueError: a folder is no run, has no validation line yet, or lacks the loss.
    """
    if not re.fullmatch(r"head_[1-9]\d*", loss):
        check_choice("--loss", loss, LOSSES)
    folders = list(dict.fromkeys(str(path).rstrip("/") for path in paths))
    if not folders:
        raise ValueError("No folder of a run was given: name some with --workdirs.")
    names = [epath.Path(folder).name for folder in folders]
    return join(_points(folder, name if names.count(name) == 1 else folder, loss)
                for folder, name in zip(folders, names))


def check_totals(loss: str, law: Law, points: Points) -> tuple[str, ...]:
    """Returns a warning where total losses are of several T, whose sums hold different terms.

    Args:
      loss: of `read_workdirs`.
      law: that is to be fitted.
      points: with these losses.

    Raises:
      ValueError: total losses of several n, or a law of single heads.
    """
    if loss not in ("total", "task"):
        return ()
    n, loops = (sorted(set(points[name].tolist())) for name in ("n", "T"))
    if law.name in ("head_one", "per_head") or len(n) > 1:
        why = f"{law.name} is a law of single heads" if law.name in ("head_one", "per_head") else (
            f"the runs have n = {', '.join(f'{value:g}' for value in n)} heads")
        remedy = "--loss=head_k" if law.name == "per_head" else "--loss=head_1"
        raise ValueError(f"--loss={loss} is a sum over all heads, which cannot be compared across n, and {why}: take "
                         f"{remedy}" + ("." if law.name == "per_head" else ", or runs of one n with --keep=n=1."))
    if len(loops) > 1:
        less = (", and the objective is less by beta times the entropy of the exits, up to beta ln T: part of what T "
                "gains may be that" if loss == "total" else "")
        return (f"--loss={loss} of T = {', '.join(f'{value:g}' for value in loops)}: the sums hold different "
                f"terms{less}. Compare with --loss=head_1, the loss after the last loop.",)
    return ()


def begun(folder: epath.PathLike) -> bool:
    """Tells whether a folder is one of a run that has a validation line."""
    path = epath.Path(folder) / METRICS_FILE
    return path.exists() and '"split": "validation"' in path.read_text()


def read_run_config(folder: epath.PathLike) -> Config:
    """Returns the settings of a run, of an older version too.

    Raises:
      ValueError: there is no config.json, or it is not one of this package.
    """
    path = epath.Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{path} is missing: is {str(folder)!r} the folder of a run?")
    try:
        values = {name: value for name, value in json.loads(path.read_text()).items() if isinstance(value, dict)}
        return from_dict(with_defaults(values))
    except (ValueError, AttributeError) as error:  # AttributeError: JSON, but not an object
        raise ValueError(f"{path} cannot be read: {error}") from error


@functools.cache
def sizes(model: ModelConfig) -> Mapping[str, float]:
    """Returns {column: number of parameters} of a model, worked out from its shape alone.

    N are those of trunk and heads; the final norm and an exit gate, 3 D numbers at most, are left out so that N does
    not differ by T. N_rec is the trunk, N_once what head 1 runs after it, N_head1 both.
    """
    from mtp_jax.model import ModelSpec, get_head_kind  # imports jax

    shapes, kind = ModelSpec.create(model).shapes, get_head_kind(model.head_kind)
    trunk, heads = _count(shapes.get("trunk", {})), _count(shapes.get("heads", {}))
    own = kind.own(model.num_heads)
    first = heads // own * kind.own(kind.loaded(model.num_heads, 1)) if own else 0
    return {"N": trunk + heads, "N_rec": trunk, "N_once": first, "N_head1": trunk + first}


def phase(config: Config, step: int) -> str:
    """Returns warmup, stable or decay: where the learning rate is after so many steps."""
    settings, horizon = config.optimizer, config.learning_rate_horizon
    if step <= settings.warmup_steps and settings.warmup_steps:
        return "warmup"
    if settings.schedule == "constant":
        return "stable"
    if settings.schedule == "cosine":
        return "decay"
    steps = max(1, min(round(settings.decay_fraction * horizon), horizon - settings.warmup_steps))
    return "stable" if step <= horizon - steps else "decay"


def _points(folder: str, name: str, loss: str) -> Points:
    """Returns the points of one run."""
    config = read_run_config(folder)
    records = [record for record in read_metrics(folder) if record["split"] == "validation"]
    if not records:
        raise ValueError(f"{folder}/{METRICS_FILE} holds no validation line yet: wait for the run's first "
                         f"train.validate_every={config.train.validate_every} steps, or leave it out.")
    columns: dict[str, list[Any]] = {key: [] for key in ("run", "D", "loss", "head", "loop", "phase")}
    for record in records:
        step = record["step"]
        for head, loop, value in _losses(record, loss, config.model, f"{folder}/{METRICS_FILE}, step {step}"):
            columns["run"].append(name)
            columns["D"].append(step * config.data.batch_size * config.data.seq_len)
            columns["loss"].append(value)
            columns["head"].append(head)
            columns["loop"].append(loop)
            columns["phase"].append(phase(config, step))
    count = len(columns["loss"])
    fixed = {**sizes(config.model), "n": config.model.num_heads, "T": config.model.loops}
    return Points({**{key: np.asarray(values) for key, values in columns.items()},
                   **{key: np.full(count, value, np.float64) for key, value in fixed.items()}})


def _losses(record: Mapping[str, Any], loss: str, model: ModelConfig, where: str) -> Iterator[tuple[int, int, float]]:
    """Yields (head, loop, loss) of a validation line; head and loop are 1 and the last of what is of no single one."""
    if loss in ("total", "task"):
        # Without loops nothing is subtracted from the task's loss.
        field = "task_loss" if loss == "task" and model.loops > 1 else "loss"
        yield 1, model.loops, _value(record.get(field), field, where)
    elif loss == "loop":
        if model.loops == 1:
            yield 1, 1, _value(record["head_loss"][0], "head_loss of head 1", where)
            return
        if "loops" not in record:
            raise ValueError(f"{where} has no losses of single loops: they are written by runs of this version.")
        for loop in range(1, model.loops + 1):
            entry = record["loops"].get(str(loop), {"head_loss": [None]})
            yield 1, loop, _value(entry["head_loss"][0], f"loss of loop {loop}", where)
    elif loss == "head_k":
        for head, value in enumerate(record["head_loss"], 1):
            if value is not None:  # a head that the schedule rests has none
                yield head, model.loops, _value(value, f"head_loss of head {head}", where)
    else:
        head = int(loss.removeprefix("head_"))
        if head > len(record["head_loss"]):
            raise ValueError(f"{where}: --loss={loss}, and the run has {len(record['head_loss'])} heads: leave it out.")
        yield head, model.loops, _value(record["head_loss"][head - 1], f"head_loss of head {head}", where)


def _value(value: Any, what: str, where: str) -> float:
    """Returns a loss; ValueError where a line has none or one that laws cannot take."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{where}: {what} is {value}: the head had the weight 0, or the run diverged; leave the run "
                         "out, or take another --loss.")
    if value <= 0:
        raise ValueError(f"{where}: {what} is {value:g} and must be above 0, for laws take its logarithm: leave the "
                         "run out, or take another --loss.")
    return float(value)


def _count(shapes: Any) -> int:
    """Returns the number of parameters of nested shapes."""
    if isinstance(shapes, Mapping):
        return sum(map(_count, shapes.values()))
    return math.prod(shapes.shape)
