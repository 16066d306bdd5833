"""Calls of other programs (gcloud, kubectl, sbatch): shown as a shell takes them, or performed.

What costs money is a list of calls first. `show` prints them, `perform` runs them, and only after --yes.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Call:
    """One program to run.

    Attributes:
      argv: the program and its arguments, not quoted.
      stdin: text for its standard input; empty, or lines that each end with a newline.
    """

    argv: tuple[str, ...]
    stdin: str = ""

    def __post_init__(self):
        if self.stdin and not self.stdin.endswith("\n"):
            raise ValueError(f"stdin of {self.argv[0]} must end with a newline, else a shell cannot show it.")


def show(calls: Sequence[Call]) -> str:
    """Returns the calls as lines for a POSIX shell: pasted there, they do what `perform` does."""
    return "".join(_show(call) for call in calls)


def perform(calls: Sequence[Call], *, yes: bool, dry_run: bool, what: str) -> int:
    """Runs the calls in order, or says what they would do.

    The first call that fails ends it, and what was done before stays done: both are told.

    Args:
      calls: what to run.
      yes: the user has agreed; without it only the plan is printed.
      dry_run: print the calls (stdout) and run none.
      what: the plan for a person: what is started, what it takes, how it is undone. Printed (stderr) in every case.

    Returns:
      0 if all calls succeeded or `dry_run`; 1 if one failed, a program is not installed, or `yes` is missing.
    """
    print(what.rstrip(), file=sys.stderr, flush=True)
    if dry_run:
        print(show(calls), end="", flush=True)
        return 0
    if not yes:
        print("Nothing was started. Add --yes to start it, or --dry_run to see the exact calls.", file=sys.stderr)
        return 1
    for program in sorted({call.argv[0] for call in calls}):
        if shutil.which(program) is None:
            print(f"error: the program {program} was not found; nothing was started. Install it or put it on PATH, or "
                  "add --dry_run to see the calls.", file=sys.stderr)
            return 1
    for number, call in enumerate(calls, 1):
        # A call without text inherits our standard input: gcloud and kubectl may ask a person something.
        done = subprocess.run(call.argv, input=call.stdin or None, text=True, check=False)
        if done.returncode:
            print(f"error: call {number} of {len(calls)} ended with status {done.returncode}: "
                  f"{shlex.join(call.argv)}\n{_told(number - 1, len(calls))}", file=sys.stderr)
            return 1
    return 0


def _show(call: Call) -> str:
    """Returns one call; its standard input is a here-document whose end stands in no line of it."""
    line = shlex.join(call.argv)
    if not call.stdin:
        return line + "\n"
    end, lines = "END", call.stdin.split("\n")
    while end in lines:
        end += "_"
    return f"{line} <<'{end}'\n{call.stdin}{end}\n"


def _told(done: int, total: int) -> str:
    """Returns what a failure leaves behind."""
    if done == 0:
        return "No call before it had run." if total > 1 else "Nothing was started."
    return f"The {done} before it succeeded and stay; the {total - done - 1} after it were not tried."
