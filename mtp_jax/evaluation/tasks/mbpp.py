"""MBPP: short functions from a sentence and three assertions (Austin et al. 2021), shown three solved tasks first.

The prompt is that of the dataset's authors, with tasks 2, 3 and 4 solved before the one that is asked for; a completion
ends at "[DONE]". The program is the completion alone; the task's assertions are run on its functions, in the sandbox,
in another process than the program. CRLF, which the published file has in its code, is read as a line's end.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mtp_jax.config import check_choice
from mtp_jax.evaluation import sandbox
from mtp_jax.evaluation.problems import make_problems, need_text, read_jsonl
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Defaults, Problem, Setting
from mtp_jax.evaluation.tasks.programs import ProgramTask

SPLITS = {"test": range(11, 511), "prompt": range(1, 11), "validation": range(511, 601), "train": range(601, 975),
          "all": range(1, 975)}
SHOWN = (2, 3, 4)


def names_and_imports(code: str, tests: str) -> tuple[list[str], str]:
    """Returns what tests need: names that a program has to define, and imports that are no part of it.

    Args:
      code: the reference solution; what it defines and the tests use is the program's.
      tests: the assertions, and what is set up for them.
    """
    used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    defined, imports = [], []
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.append(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if used & {alias.asname or alias.name for alias in node.names}:
                imports.append(ast.unparse(node))
    called = {node.func.id for node in ast.walk(ast.parse(tests))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)} - set(dir(builtins))
    return sorted(used & set(defined) | called), "\n".join(imports)


class Mbpp(ProgramTask):
    """MBPP by pass@k."""

    name = "mbpp"
    about = "Functions from a sentence and assertions (MBPP, 3-shot), run in a sandbox, pass@k."
    data_help = "mbpp.jsonl of google-research/mbpp"
    defaults = Defaults(max_new_tokens=512, stop=("[DONE]",), samples=1, temperatures=(0.0,), top_p=0.95,
                        k=(1, 10, 100))
    settings = (
        Setting("split", "test", f"One of {', '.join(SPLITS)}; test is tasks 11 to 510."),
        Setting("shots", 3, f"Solved tasks that are shown first, of {SHOWN}."),
    )

    def problems(self, request: Request) -> list[Problem]:
        """Reads the problems of the split."""
        sandbox.layer_here()  # before anything is generated in vain
        split, shots = request.option("split"), request.option("shots")
        check_choice("--set=split", split, SPLITS)
        if not 0 <= shots <= len(SHOWN):
            raise ValueError(f"--set=shots={shots}: MBPP shows 0 to {len(SHOWN)} solved tasks.")
        records: dict[int, Mapping[str, Any]] = {}

        def make(where: str, record: Mapping[str, Any], task_id: str) -> Problem | None:
            need_text(record, where, "text", "code")
            tests, number = record.get("test_list"), record.get("task_id")
            if not isinstance(number, int):
                raise ValueError(f"{where}: task_id is {number!r:.60}, which is no whole number.")
            if number not in SPLITS[split] and number not in SHOWN:
                return None
            if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests) or not tests:
                raise ValueError(f"{where}: test_list is {tests!r:.60}, which is no list of assertions.")
            records[number] = record
            return Problem(task_id, asked(record), facts(record)) if number in SPLITS[split] else None

        found = make_problems(read_jsonl(self.data(request)),
                              lambda number, record: str(record.get("task_id", f"mbpp/{number}")), make)
        missing = [number for number in SHOWN[:shots] if number not in records]
        if missing:
            raise ValueError(f"{self.data(request)} lacks task {missing[0]}, which the prompt shows solved: name the "
                             "whole mbpp.jsonl, or give --set=shots=0.")
        before = "".join(f"{asked(records[number])}{lines(records[number]['code'])}\n[DONE]\n\n"
                         for number in SHOWN[:shots])
        return [dataclasses.replace(problem, prompt=before + problem.prompt) for problem in found]

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Runs the assertions of the problem."""
        verdict = sandbox.check_function(completion, names=problem.facts["names"], prelude=problem.facts["imports"],
                                         test=problem.facts["tests"], limits=sandbox.Limits(request.config.timeout))
        return {"passed": verdict.passed, "outcome": verdict.outcome, "detail": verdict.detail}


def facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tests of a problem and what they need; ValueError where its own code or tests are no Python."""
    tests = "\n".join([lines(record.get("test_setup_code") or ""), *map(lines, record["test_list"])])
    try:
        with warnings.catch_warnings(action="ignore"):  # of the dataset's own escape sequences
            names, imports = names_and_imports(lines(record["code"]), tests)
    except SyntaxError as error:  # of this problem alone
        raise ValueError(f"the problem's own code or tests are no Python: {error}") from error
    return {"tests": tests, "names": names, "imports": imports}


def asked(record: Mapping[str, Any]) -> str:
    """Returns what is asked, up to where the answer begins."""
    tests: Sequence[str] = record["test_list"]
    return ("You are an expert Python programmer, and here is your task: "
            f"{record['text'].strip()} Your code should pass these tests:\n\n"
            + "".join(f"{lines(test)}\n" for test in tests) + "[BEGIN]\n")


def lines(text: str) -> str:
    """Returns a text with line feeds alone at its lines' ends."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")


TASK = Mbpp()
