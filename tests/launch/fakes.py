"""Programs that are not installed here (gcloud, kubectl, sbatch, srun), put on PATH: each notes how it was called."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]

_NOTES = """\
#!{python} -S
import json, os, sys
stdin = "" if os.isatty(0) else sys.stdin.read() if {reads} else ""
for argument in sys.argv[1:]:
    if argument.endswith("=/dev/stdin"):
        stdin = open("/dev/stdin").read()
with open({log!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], stdin]) + "\\n")
statuses = open({statuses!r}).read().split()
open({statuses!r}, "w").write(" ".join(statuses[1:]))
sys.exit(int(statuses[0]) if statuses else 0)
"""


class Fakes:
    """Fake programs in a folder of their own.

    Attributes:
      environment: variables that put them before all others on PATH.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = self.folder / "log.jsonl"
        self.environment = {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "MTP_JAX_PAUSE": "0"}

    def add(self, name, statuses=(), reads=False, folder=None):
        """Adds a program that ends with these statuses, one a call, and with 0 after them.

        Args:
          name: of the program.
          statuses: in the order of the calls.
          reads: it reads its standard input to the end.
          folder: where it lies; None: where PATH finds it.
        """
        path = pathlib.Path(folder or self.folder) / name
        left = self.folder / f"{name}.statuses"
        left.write_text(" ".join(map(str, statuses)))
        self.write(path, _NOTES.format(python=sys.executable, log=str(self._log), statuses=str(left), reads=reads))

    def write(self, path, text):
        """Writes a program."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def calls(self):
        """Returns [program, arguments, standard input] of every call so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def bash(self, script, **environment):
        """Runs a script in bash, with the fakes, and returns what became of it."""
        return subprocess.run(["bash", "-c", script], env={**self.environment, **environment}, cwd=self.folder,
                              capture_output=True, text=True, timeout=60)
