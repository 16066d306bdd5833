"""The tasks by name; each module is imported when its task is asked for."""

from __future__ import annotations

import importlib

from mtp_jax.config import check_choice
from mtp_jax.evaluation.task import Task

TASKS: dict[str, str] = {  # name -> module that holds it, as TASK or in TASKS
    "polynomial": "mtp_jax.evaluation.tasks.polynomial",
}


def get_task(name: str) -> Task:
    """Returns a task.

    Raises:
      ValueError: there is none of that name; names the nearest.
    """
    check_choice("--task", name, TASKS)
    module = importlib.import_module(TASKS[name])
    found: Task = module.TASKS[name] if hasattr(module, "TASKS") else module.TASK
    return found
