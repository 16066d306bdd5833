"""The tasks by name; each module is imported when its task is asked for."""

from __future__ import annotations

import importlib

from mtp_jax.config import check_choice
from mtp_jax.evaluation.task import Task

TASKS: dict[str, str] = {  # name -> module that holds it, as TASK or in TASKS
    "humaneval": "mtp_jax.evaluation.tasks.humaneval",
    "mbpp": "mtp_jax.evaluation.tasks.mbpp",
    "apps": "mtp_jax.evaluation.tasks.apps",
    "code_contests": "mtp_jax.evaluation.tasks.code_contests",
    "information": "mtp_jax.evaluation.tasks.information",
    "choice_points": "mtp_jax.evaluation.tasks.choice_points",
    "arc_easy": "mtp_jax.evaluation.tasks.choice",
    "arc_challenge": "mtp_jax.evaluation.tasks.choice",
    "piqa": "mtp_jax.evaluation.tasks.choice",
    "siqa": "mtp_jax.evaluation.tasks.choice",
    "winogrande": "mtp_jax.evaluation.tasks.choice",
    "openbookqa": "mtp_jax.evaluation.tasks.choice",
    "boolq": "mtp_jax.evaluation.tasks.choice",
    "copa": "mtp_jax.evaluation.tasks.choice",
    "drafting": "mtp_jax.evaluation.tasks.drafting",
    "early_exit": "mtp_jax.evaluation.tasks.early_exit",
    "perplexity": "mtp_jax.evaluation.tasks.perplexity",
    "summaries": "mtp_jax.evaluation.tasks.summaries",
    "math500": "mtp_jax.evaluation.tasks.math500",
    "gsm8k": "mtp_jax.evaluation.tasks.gsm8k",
    "induction": "mtp_jax.evaluation.tasks.induction",
    "polynomial": "mtp_jax.evaluation.tasks.polynomial",
    "star_graph": "mtp_jax.evaluation.tasks.star_graph",
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
