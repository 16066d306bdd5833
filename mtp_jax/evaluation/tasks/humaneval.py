"""HumanEval: functions to be written from their docstring (Chen et al. 2021).

The prompt is the task's, as published, and the completion goes on with the function's body. The program is both; the
task's own `check` is run on its function, in the sandbox, in another process than the program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtp_jax.evaluation import sandbox
from mtp_jax.evaluation.problems import make_problems, need_text, read_jsonl
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Defaults, Problem
from mtp_jax.evaluation.tasks.programs import ProgramTask


class HumanEval(ProgramTask):
    """HumanEval by pass@k."""

    name = "humaneval"
    about = "Functions from their docstring (HumanEval), run in a sandbox, pass@k."
    data_help = "HumanEval.jsonl.gz of openai/human-eval"
    defaults = Defaults(max_new_tokens=512, stop=("\nclass", "\ndef", "\n#", "\nif", "\nprint"), samples=1,
                        temperatures=(0.0,), top_p=0.95, k=(1, 10, 100))

    def problems(self, request: Request) -> list[Problem]:
        """Reads the problems."""
        sandbox.layer_here()  # before anything is generated in vain

        def make(where: str, record: Mapping[str, Any], task_id: str) -> Problem:
            need_text(record, where, "task_id", "prompt", "entry_point", "test")
            return Problem(task_id, record["prompt"], {"test": record["test"], "entry_point": record["entry_point"]})

        return make_problems(read_jsonl(self.data(request)),
                             lambda number, record: str(record.get("task_id", f"humaneval/{number}")), make)

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Runs the check of the problem."""
        function = problem.facts["entry_point"]
        verdict = sandbox.check_function(
            f"{problem.prompt}{completion}\n", names=[function], prelude=problem.prompt,
            test=f"{problem.facts['test']}\ncheck({function})\n", limits=sandbox.Limits(request.config.timeout))
        return {"passed": verdict.passed, "outcome": verdict.outcome, "detail": verdict.detail}


TASK = HumanEval()
