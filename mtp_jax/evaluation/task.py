"""What a task is: problems, what the model is asked of each, and how what it says is scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.config import nearest
from mtp_jax.evaluation.request import Request

DRAWING_FLAGS = ("samples", "temperature", "k", "top_p", "max_new_tokens", "stop", "completions")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of a task.

    Attributes:
      task_id: unique in the task; what a file of completions calls it.
      prompt: what the model continues.
      facts: what the scorer needs; never shown to the model.
      broken: why it can be neither asked nor scored; "" for a sound one. It counts as failed, and is listed.
    """

    task_id: str
    prompt: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    broken: str = ""


@dataclasses.dataclass(frozen=True)
class Defaults:
    """How a task's completions are drawn where the flags of the same names do not say otherwise."""

    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    samples: int = 1
    temperatures: tuple[float, ...] = (0.0,)
    top_p: float = 1.0
    k: tuple[int, ...] = (1,)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of a task's own, given as --set=NAME=VALUE.

    Attributes:
      name: of it.
      default: gives the type too: str, int, float or bool.
      help: what it does.
    """

    name: str
    default: str | int | float | bool
    help: str


@dataclasses.dataclass
class Sample:
    """A completion of a problem and what was found of it.

    Attributes:
      task_id: of the problem.
      completion: what counts of the text.
      temperature: that it was drawn at; None where a file brought it.
      fields: what `Task.score` returned.
      error: why it could not be generated or scored; it counts as failed.
    """

    task_id: str
    completion: str
    temperature: float | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None

    @property
    def passed(self) -> bool:
        """The verdict; False for one that could not be scored."""
        return self.error is None and bool(self.fields.get("passed"))

    def to_json(self) -> dict[str, Any]:
        """Returns the sample as it stands in the result."""
        told = {} if self.temperature is None else {"temperature": self.temperature}
        failed = {} if self.error is None else {"passed": False, "error": self.error}
        return {"task_id": self.task_id, "completion": self.completion, **told, **self.fields, **failed}


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The numbers of a task.

    Attributes:
      values: {name: number}.
      intervals: {name: (low, high)} of those that have one.
      tables: anything else for the result's JSON, by its key there.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    tables: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Attributes:
      task: its name.
      metrics: the numbers.
      samples: one object a completion, or a problem.
      settings: everything that decided the numbers.
      errors: {"task_id", "error"} of what could not be evaluated.
    """

    task: str
    metrics: Metrics
    samples: list[dict[str, Any]]
    settings: dict[str, Any]
    errors: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the result as eval/TASK.json holds it."""
        return {"task": self.task, "metrics": self.metrics.values, "intervals": self.metrics.intervals,
                **self.metrics.tables, "settings": self.settings, "errors": self.errors, "samples": self.samples}


class Task:
    """A task; a file each, with an object of it named TASK.

    Attributes:
      name: as --task has it.
      about: a line on what it measures.
      data_help: what --data is; "" for a task that reads none, and "optional ..." where it may be left out.
      settings: of its own.
      drawing_flags: flags on how completions are drawn, or brought, that it reads; the others are refused.
    """

    name: str = ""
    about: str = ""
    data_help: str = ""
    settings: Sequence[Setting] = ()
    drawing_flags: Sequence[str] = ()

    def run(self, request: Request) -> Result:
        """Evaluates.

        Raises:
          ValueError: the data, the model or a setting does not fit; names it and the remedy.
        """
        raise NotImplementedError

    def data(self, request: Request) -> epath.Path:
        """Returns the file or folder that --data names.

        Raises:
          ValueError: it was left out, or does not exist.
        """
        found = request.data
        if found is None:
            raise ValueError(f"--data is missing: --task={self.name} reads {self.data_help}.")
        return found

    def options(self, given: Sequence[str]) -> dict[str, Any]:
        """Returns the task's own settings, those that are not given as by default.

        Args:
          given: each "NAME=VALUE".

        Raises:
          ValueError: one is unknown, given twice, or of the wrong type.
        """
        known = {setting.name: setting for setting in self.settings}
        found: dict[str, Any] = {}
        for text in given:
            name, equals, value = text.partition("=")
            if not equals or name not in known:
                there = ", ".join(known) or "none"
                raise ValueError(f"--set={text}: --task={self.name} has no setting {name!r}; it has: {there}."
                                 f"{nearest(name, list(known))}" if name not in known else
                                 f"--set={text} is not of the form NAME=VALUE.")
            if name in found:
                raise ValueError(f"--set gives {name} twice: leave one out.")
            found[name] = _typed(known[name].default, value, text)
        return {name: found.get(name, setting.default) for name, setting in known.items()}


def _typed(default: str | int | float | bool, value: str, text: str) -> str | int | float | bool:
    """Returns a value as the type of the default; ValueError where it is none."""
    if isinstance(default, bool):
        if value.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"--set={text} must be true or false.")
        return value.lower() in ("true", "1")
    try:
        return type(default)(value)
    except ValueError as error:
        raise ValueError(f"--set={text} must be of type {type(default).__name__}.") from error
