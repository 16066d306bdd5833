"""APPS: programming problems in words, with tests (Hendrycks et al. 2021), of three levels.

--data is a folder as published (a folder a problem, with question.txt, input_output.json and metadata.json, and where
a frame is given starter_code.py; or one above, with train/ and test/), or the JSONL of the dataset's copy on the
Hugging Face hub (problem_id, question, input_output, difficulty, starter_code). The prompt is that of the authors, and
so are the imports that a program may leave out. Output is compared word by word, numbers with a point within 1e-5; the
authors' own script has further ways to call two outputs the same (lines in any order, for one), which are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from mtp_jax.config import check_choice
from mtp_jax.evaluation import sandbox
from mtp_jax.evaluation.problems import make_problems, need_text, read_jsonl, read_text
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Defaults, Problem, Setting
from mtp_jax.evaluation.tasks.programs import ProgramTask, score_calls, score_program

LEVELS = ("introductory", "interview", "competition", "all")
SPLITS = ("test", "train")
# The authors' script puts these before every program, for the solutions of sites that need not name them.
_IMPORTS = """import sys, time, itertools, collections, math, fractions, random, heapq
from itertools import accumulate, product, permutations, combinations
from collections import Counter, OrderedDict, deque, defaultdict, ChainMap
from functools import lru_cache
from math import sqrt, sin, cos, tan, ceil, fabs, floor, gcd, exp, log, log2
from typing import *
from heapq import *
"""


def read_folder(folder: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each problem of a folder in the published form, as the JSONL has it.

    Raises:
      ValueError: there is none, or a problem has no question.
    """
    places = sorted((place for place in folder.iterdir() if (place / "question.txt").exists()),
                    key=lambda place: place.name)
    if not places:
        raise ValueError(f"--data={folder} has no folder with a question.txt in it: name APPS' folder, or its test.")
    for place in places:
        record = {"problem_id": place.name, "question": read_text(place / "question.txt")}
        for field, name in (("input_output", "input_output.json"), ("starter_code", "starter_code.py")):
            record[field] = read_text(place / name) if (place / name).exists() else ""
        about = place / "metadata.json"
        try:
            record["difficulty"] = json.loads(read_text(about))["difficulty"] if about.exists() else ""
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{about} is no object with a difficulty: {error!r}.") from error
        yield str(place), record


def read_tests(text: str) -> tuple[str, list[Any], list[Any]]:
    """Returns (function or "", inputs, outputs) of a problem's input_output.

    Raises:
      ValueError: it is not what APPS has.
    """
    if not text.strip():
        raise ValueError("the problem has no test, so that nothing can be told of a program.")
    try:
        found = json.loads(text)
        function, inputs, outputs = found.get("fn_name") or "", found["inputs"], found["outputs"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"input_output is no object of inputs and outputs: {error!r}") from error
    if not (isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) == len(outputs)):
        raise ValueError("inputs and outputs of input_output are not two lists of one length.")
    return function, inputs, outputs


def joined(value: Any) -> str:
    """Returns an input or an output as text; some are lists of lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


class Apps(ProgramTask):
    """APPS by pass@k."""

    name = "apps"
    about = "Programming problems in words (APPS), run in a sandbox on all their tests, pass@k."
    data_help = "the folder of APPS, with a folder a problem, or the JSONL of its copy on the Hugging Face hub"
    defaults = Defaults(max_new_tokens=1024, stop=("\nQUESTION", "\n---", "\nANSWER"), samples=1, temperatures=(0.0,),
                        top_p=0.95, k=(1, 10, 100))
    settings = (
        Setting("level", "introductory", f"One of {', '.join(LEVELS)}; the paper reports the introductory ones."),
        Setting("split", "test", "test or train, where --data holds both."),
    )

    def problems(self, request: Request) -> list[Problem]:
        """Reads the problems of the level; their tests are read when they are run."""
        data, level, split = self.data(request), request.option("level"), request.option("split")
        sandbox.layer_here()  # before anything is generated in vain
        check_choice("--set=level", level, LEVELS)
        check_choice("--set=split", split, SPLITS)
        if data.is_dir() and (data / split).is_dir():
            data = data / split

        def make(where: str, record: Mapping[str, Any], task_id: str) -> Problem | None:
            if level not in ("all", record.get("difficulty", level)):
                return None
            need_text(record, where, "question", "input_output")
            return None if level not in ("all", record.get("difficulty")) else Problem(
                task_id, asked(record), {"tests": record["input_output"]})

        found = make_problems(
            read_folder(data) if data.is_dir() else read_jsonl(data),
            lambda number, record: str(record.get("problem_id", record.get("id", number + 1))), make)
        if not found:
            raise ValueError(f"--data={request.config.data} has no problem of level {level!r}: give --set=level=all.")
        return found

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Runs all tests of the problem."""
        function, inputs, outputs = read_tests(problem.facts["tests"])
        seconds = request.config.timeout
        numpy = "import numpy as np\n" if "np." in completion else ""
        source = f"{_IMPORTS}{numpy}{completion}\n" if completion.strip() else ""
        if function:
            return score_calls(source, function, list(zip(inputs, outputs)), seconds=seconds)
        cases = [(joined(given), joined(wanted)) for given, wanted in zip(inputs, outputs)]
        return score_program(source, cases, seconds=seconds)


def asked(record: Mapping[str, Any]) -> str:
    """Returns the prompt of the authors."""
    starter = record.get("starter_code") or ""
    calls = '"fn_name"' in record["input_output"]
    return (f"\nQUESTION:\n{record['question']}" + (f"\n{starter}" if starter else "")
            + f"\nUse {'Call-Based' if calls else 'Standard Input'} format\nANSWER:\n")


TASK = Apps()
