"""GSM8K: word problems of grade school, by a chain of thought (Cobbe et al. 2021; Wei et al. 2022; section 3.7).

The prompt is up to eight worked examples, "Q: ... A: ... The answer is 6.", and the question. The sentence with the
answer decides: the last number of the last "The answer is ..." (or of GSM8K's own "#### ..." line). Beside it stands
what a lenient reading gives: the last number of the completion, whatever stands before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from etils import epath

from mtp_jax.evaluation.generation_task import GenerationTask
from mtp_jax.evaluation.mathematics.gsm8k_prompt import WEI_2022
from mtp_jax.evaluation.mathematics.lenient_column import with_lenient
from mtp_jax.evaluation.mathematics.numbers import last_number, written
from mtp_jax.evaluation.problems import make_problems, need_text, read_jsonl
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Defaults, Metrics, Problem, Sample, Setting

# To the end of the sentence: a full stop before a space or the end, or of the line.
_ANSWER = re.compile(r"(?:[Tt]he (?:final )?answer is|####)(?P<sentence>(?:[^.\n]|\.(?=\d))*)")
_CALCULATION = re.compile(r"<<[^<>]*>>")


def stated_answer(completion: str) -> Fraction | None:
    """Returns the number of the last sentence that states an answer; None where there is none."""
    sentences = [match["sentence"] for match in _ANSWER.finditer(completion)]
    return last_number(sentences[-1]) if sentences else None


def reference_answer(answer: str, where: str) -> Fraction:
    """Returns the number behind the "####" of a reference solution.

    Raises:
      ValueError: there is none; `where` says of what file and line.
    """
    _, mark, tail = answer.rpartition("####")
    number = last_number(tail) if mark else None
    if number is None:
        raise ValueError(f"{where}: answer does not end in '#### NUMBER', as GSM8K's do.")
    return number


def worked(question: str, answer: str) -> tuple[str, str]:
    """Returns an example of GSM8K's own file as the prompt has it: no <<calculation>>, and "The answer is X."."""
    steps, _, number = _CALCULATION.sub("", answer).rpartition("####")
    text = " ".join(line.strip() for line in steps.strip().split("\n"))
    return question.strip(), f"{text} The answer is {number.strip()}."


class Gsm8k(GenerationTask):
    """GSM8K by a chain of thought."""

    name = "gsm8k"
    about = "Word problems of grade school by a chain of thought, pass@k."
    data_help = "test.jsonl of openai/grade-school-math: objects with question and answer"
    defaults = Defaults(max_new_tokens=400, stop=("\nQ:",), samples=1, temperatures=(0.0,), top_p=0.95, k=(1,))
    settings = (
        Setting("shots", 8, "Worked examples before the question."),
        Setting("shots_file", "", "JSONL in GSM8K's form whose first examples are shown, such as train.jsonl; empty: "
                                  "the eight of Wei et al. 2022."),
    )

    def problems(self, request: Request) -> list[Problem]:
        """Reads the questions."""
        before = "".join(f"Q: {question}\nA: {answer}\n\n" for question, answer in self.shots(request))

        def make(where: str, record: Mapping[str, Any], task_id: str) -> Problem:
            need_text(record, where, "question", "answer")
            reference = reference_answer(record["answer"], where)
            return Problem(task_id, f"{before}Q: {record['question'].strip()}\nA:", {"answer": reference})

        return make_problems(read_jsonl(self.data(request)), lambda number, record: f"gsm8k/{number}", make)

    def shots(self, request: Request) -> Sequence[tuple[str, str]]:
        """Returns the worked examples.

        Raises:
          ValueError: there are not as many.
        """
        count, file = int(request.option("shots")), str(request.option("shots_file"))
        if file:
            path = epath.Path(file).expanduser()
            if not path.exists():
                raise ValueError(f"--set=shots_file={file} does not exist: name a file in GSM8K's form.")
            examples: list[tuple[str, str]] = []
            for where, record in read_jsonl(path):
                if len(examples) >= count:
                    break
                need_text(record, where, "question", "answer")
                reference_answer(record["answer"], where)
                examples.append(worked(record["question"], record["answer"]))
        else:
            examples = list(WEI_2022)
        if not 0 <= count <= len(examples):
            raise ValueError(f"--set=shots={count} must lie in 0..{len(examples)}, the examples of "
                             f"{file or 'Wei et al. 2022; --set=shots_file=FILE names others'}.")
        return examples[:count]

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Compares numbers by value."""
        completion = completion.partition(self.defaults.stop[0])[0]  # one from elsewhere may go on to a next question
        stated, last, reference = stated_answer(completion), last_number(completion), problem.facts["answer"]
        return {"passed": stated == reference, "lenient": last == reference, "answer": written(stated),
                "last_number": written(last), "reference": written(reference)}

    def metrics(self, samples: Sequence[Sample], request: Request) -> Metrics:
        """Returns pass@k, strict and lenient."""
        return with_lenient(super().metrics, samples, request)


TASK = Gsm8k()
