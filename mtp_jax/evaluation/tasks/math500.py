r"""MATH-500: 500 problems of the MATH test set (Hendrycks et al. 2021; the selection of Lightman et al. 2023).

The last \boxed{} of the completion alone is the answer; the prompt's text is never searched. Strict: it is the
reference but for how it is written (`mathematics.normal`). Lenient, beside it: it has the reference's value
(`mathematics.lenient`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mtp_jax.evaluation.generation_task import GenerationTask
from mtp_jax.evaluation.mathematics.boxed import last_boxed
from mtp_jax.evaluation.mathematics.lenient import leniently_equal
from mtp_jax.evaluation.mathematics.lenient_column import with_lenient
from mtp_jax.evaluation.mathematics.normal import strictly_equal
from mtp_jax.evaluation.problems import make_problems, need_text, read_jsonl
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Defaults, Metrics, Problem, Sample, Setting

ASKED = "Give the final answer in \\boxed{}.\n\n"  # where no worked example shows it


class Math500(GenerationTask):
    """MATH-500 by boxed answers."""

    name = "math500"
    about = "Competition mathematics: the last \\boxed{} of the completion against the reference, pass@k."
    data_help = "test.jsonl of MATH-500: objects with problem and answer"
    defaults = Defaults(max_new_tokens=512, stop=("\nProblem:",), samples=1, temperatures=(0.0,), top_p=0.95, k=(1,))
    settings = (
        Setting("shots", 0, "Worked examples before the problem; 4 is usual. They need a shots_file."),
        Setting("shots_file", "", "JSONL of problem and solution, such as MATH's training problems; its first are "
                                  "shown."),
    )

    def problems(self, request: Request) -> list[Problem]:
        """Reads the problems."""
        before = self.shots(request)

        def make(where: str, record: Mapping[str, Any], task_id: str) -> Problem:
            need_text(record, where, "problem", "answer")
            return Problem(
                task_id, f"{before or ASKED}Problem:\n{record['problem'].strip()}\n\nSolution:",
                {"answer": record["answer"], "subject": record.get("subject"), "level": record.get("level")})

        return make_problems(read_jsonl(self.data(request)),
                             lambda number, record: str(record.get("unique_id") or f"math500/{number}"), make)

    def shots(self, request: Request) -> str:
        """Returns the worked examples as they stand before the problem.

        Raises:
          ValueError: there are not as many, or a solution has no boxed answer.
        """
        count, file = int(request.option("shots")), str(request.option("shots_file"))
        if count < 0 or (count and not file):
            raise ValueError(f"--set=shots={count} needs --set=shots_file=FILE, a JSONL of problem and solution; or "
                             "leave both out.")
        if not count:
            return ""
        path = epath.Path(file).expanduser()
        if not path.exists():
            raise ValueError(f"--set=shots_file={file} does not exist: name a JSONL of problem and solution.")
        examples: list[str] = []
        for where, record in read_jsonl(path):
            if len(examples) == count:
                break
            need_text(record, where, "problem", "solution")
            if last_boxed(record["solution"]) is None:
                raise ValueError(f"{where}: the solution has no \\boxed{{}} to show.")
            examples.append(f"Problem:\n{record['problem'].strip()}\n\nSolution:\n{record['solution'].strip()}\n\n")
        if len(examples) < count:
            raise ValueError(f"--set=shots={count}, but {file} has {len(examples)} examples.")
        return "".join(examples)

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Compares the last box of the completion with the reference."""
        completion = completion.partition(self.defaults.stop[0])[0]  # one from elsewhere may go on to a next problem
        answer, reference = last_boxed(completion), problem.facts["answer"]
        return {"passed": strictly_equal(answer, reference), "lenient": leniently_equal(answer, reference),
                "answer": answer, "reference": reference, "subject": problem.facts["subject"],
                "level": problem.facts["level"]}

    def metrics(self, samples: Sequence[Sample], request: Request) -> Metrics:
        """Returns pass@k, strict and lenient."""
        return with_lenient(super().metrics, samples, request)


TASK = Math500()
