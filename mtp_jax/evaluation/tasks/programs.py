"""What the tasks of programs share: the sandbox, and how the output of those that write text is compared."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mtp_jax.evaluation import sandbox
from mtp_jax.evaluation.generation_task import GenerationTask
from mtp_jax.evaluation.request import Request

ALTOGETHER = 20  # times the limit of one test: what a problem's tests may take in all
_TOLERANCE = 1e-5

# Runs in the checker's process, where the expected values are; FUNCTION is a method of Solution or a plain function.
_CALLS = """
import json
def plain(value):
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
def keys(value):
    try:
        return {int(key): item for key, item in value.items()} if isinstance(value, dict) else value
    except ValueError:
        return value
target = getattr(Solution(), FUNCTION) if "Solution" in globals() else globals()[FUNCTION]
for number, (given, expected) in enumerate(json.loads(CASES)):
    got, expected = plain(target(*map(keys, given))), keys(expected)
    right = got == expected or isinstance(expected, list) and len(expected) == 1 and got == keys(expected[0])
    assert right, f"test {number}"
"""


class ProgramTask(GenerationTask):
    """A task whose completions are run."""

    def _settings(self, request: Request, *args: Any) -> dict[str, Any]:
        """Returns everything that decides the numbers, the sandbox' layer with it."""
        return {**super()._settings(request, *args), "sandbox": sandbox.layer_here()}


def same_text(got: str, expected: str, *, fold: bool = False) -> bool:
    """Tells whether two outputs are the same, word by word.

    Blanks and blank lines do not count. Two numbers of which one has a decimal point or an exponent are the same within
    1e-5, absolute or of the expected one.

    Args:
      got: what a program wrote.
      expected: what it should have.
      fold: whether upper and lower case are the same.
    """
    if fold:
        got, expected = got.lower(), expected.lower()
    wanted = expected.split()
    words = got.split(None, len(wanted))  # of a flood, no more than tells that it is one
    return len(words) == len(wanted) and all(
        word == want or _same_number(word, want) for word, want in zip(words, wanted))


def _same_number(word: str, want: str) -> bool:
    if not any(mark in word + want for mark in ".eE"):
        return False
    try:
        number, wanted = float(word), float(want)
    except ValueError:
        return False
    finite = math.isfinite(number) and math.isfinite(wanted)
    return finite and abs(number - wanted) <= _TOLERANCE * max(1.0, abs(wanted))


def score_program(source: str, cases: Sequence[tuple[str, str]], *, seconds: float, fold: bool = False
                  ) -> Mapping[str, Any]:
    """Runs a program on each input, up to the first that it fails, and returns the fields of a score.

    Args:
      source: the program.
      cases: (input, expected output); the expected one stays in this process.
      seconds: for one test; all together get ALTOGETHER times as much.
      fold: as of `same_text`.

    Raises:
      ValueError: there is no test.
    """
    if not cases:
        raise ValueError("the problem has no test, so that nothing can be told of a program.")
    end = time.monotonic() + ALTOGETHER * seconds
    with sandbox.run_program(source, limits=sandbox.Limits(seconds)) as program:
        for number, (given, expected) in enumerate(cases):
            if time.monotonic() > end:
                return told("timeout", f"test {number}: all together took {ALTOGETHER} times the limit of one", number)
            verdict = program(given)
            if not verdict.passed:
                return told(verdict.outcome, f"test {number} {verdict.detail}".strip(), number)
            if not same_text(verdict.output, expected, fold=fold):
                return told("failed", f"test {number}", number)
    return told("passed", "", len(cases))


def score_calls(source: str, function: str, cases: Sequence[tuple[list[Any], Any]], *, seconds: float
                ) -> Mapping[str, Any]:
    """Calls a function, or the method of a class Solution, with each list of arguments; returns the fields of a score.

    Lists and tuples are the same, as JSON has lists alone; an expected value may stand in a list of its own.

    Raises:
      ValueError: there is no test.
    """
    if not cases:
        raise ValueError("the problem has no test, so that nothing can be told of a program.")
    verdict = sandbox.check_function(source, names=["Solution", function], test=_CALLS, limits=sandbox.Limits(seconds),
                                     prelude=f"FUNCTION = {function!r}\nCASES = {json.dumps(cases)!r}\n")
    return told(verdict.outcome, verdict.detail)


def told(outcome: str, detail: str, tests: int | None = None) -> dict[str, Any]:
    """Returns the fields of a score.

    Args:
      outcome: of a sandbox.Verdict.
      detail: a sentence on it.
      tests: how many went well, where they are run one by one.
    """
    counted = {} if tests is None else {"tests_passed": tests}
    return {"passed": outcome == "passed", "outcome": outcome, "detail": detail, **counted}
