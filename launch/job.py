"""A job: one training run, told so that any engine (queued resources, GKE, SLURM) can start it on every host.

Nothing here imports mtp_jax or jax: a launcher runs where there may be neither.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence

MAX_NAME = 40  # a DNS label has 63; engines append slice, host and a random end

_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_SETTING = re.compile(r"--(no)?config\.[\w.]+(=.*)?", re.DOTALL)
_LIKE_A_SETTING = re.compile(r"--?(no)?config\b.*", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of an experiment.

    Attributes:
      name: how the engine calls it; lower-case letters, digits and hyphens.
      module: what `python -m` runs on every host, such as "experiments.paper".
      workdir: folder or bucket of the run, reached by every host under the same name.
      settings: arguments "--config.PATH=VALUE" as Python has them, not quoted for a shell.
    """

    name: str
    module: str
    workdir: str
    settings: tuple[str, ...] = ()

    def validate(self) -> None:
        """Raises ValueError where a field cannot be started as it is."""
        if not _NAME.fullmatch(self.name) or len(self.name) > MAX_NAME:
            raise ValueError(f"name={self.name!r} must be lower-case letters, digits and hyphens, start with a letter, "
                             f"end with a letter or digit and be at most {MAX_NAME} long; "
                             f"name it {name_from(self.name)!r}, for one.")
        if not _MODULE.fullmatch(self.module):
            raise ValueError(f"module={self.module!r} is not a module such as experiments.paper.")
        for field, text in (("workdir", self.workdir), *(("settings", text) for text in self.settings)):
            if not text or "\0" in text or not _is_utf8(text):
                raise ValueError(f"{field}={text!r} must be text (UTF-8), neither empty nor with a NUL in it.")
        if self.workdir.startswith("-"):
            raise ValueError(f"workdir={self.workdir!r} starts like a flag; write ./{self.workdir}.")
        for setting in self.settings:
            if not _SETTING.fullmatch(setting):
                raise ValueError(f"settings={setting!r} is not of the form --config.PATH=VALUE.")

    def command(self, python: str = "python") -> tuple[str, ...]:
        """Returns the command of every host, as argv.

        Args:
          python: the interpreter, as the host finds it.
        """
        return (python, "-m", self.module, f"--workdir={self.workdir}", *self.settings)


def check_jobs(jobs: Sequence[Job], *, bucket: bool) -> None:
    """Raises ValueError where jobs cannot be started together.

    Args:
      jobs: validated here, each.
      bucket: the hosts share no folder, so that each workdir must lie in a gs:// bucket; else an absolute path does.
    """
    if not jobs:
        raise ValueError("jobs=[] is empty: there is nothing to start.")
    for job in jobs:
        job.validate()
        if bucket and not re.match(r"gs://[^/]+/.", job.workdir):
            raise ValueError(f"workdir={job.workdir!r} is not a folder in a bucket, and the hosts share no other; name "
                             "one such as gs://BUCKET/paper_7b.")
        if not bucket and not re.match(r"[a-z0-9]+://|/", job.workdir):
            raise ValueError(f"workdir={job.workdir!r} must be absolute, or in a bucket: every host reads it.")
        if re.match(r"/(tmp|dev/shm)(/|$)", job.workdir):
            raise ValueError(f"workdir={job.workdir!r} is another folder on each host; name one that they share.")
    for field in ("name", "workdir"):
        values = [getattr(job, field) for job in jobs]
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{field}={value!r} is that of {values.count(value)} jobs; each needs its own.")


def check_env(env: Sequence[str]) -> None:
    """Raises ValueError where an entry is not of the form NAME=VALUE."""
    for entry in env:
        if not re.fullmatch(r"[A-Za-z_]\w*=[^\0]*", entry):
            raise ValueError(f"env={entry!r} is not of the form NAME=VALUE.")


def name_from(text: str) -> str:
    """Returns a valid job name made of any text, such as the last part of a workdir."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    words = words if words[:1].isalpha() else f"run-{words}"
    return words[:MAX_NAME].strip("-")


def common_name(jobs: Sequence[Job]) -> str:
    """Returns what several jobs are called together: the words with which all their names begin.

    Numbers at the end of these are left out, for a value of 0.1 and one of 0.2 begin alike; an attempt such as r2 that
    all have comes last. Where no word is common it is the first one's name; a job alone keeps its own.
    """
    names = [each.name.split("-") for each in jobs]
    if len(names) == 1:
        return jobs[0].name
    words = [same[0] for same in itertools.takewhile(lambda same: len(set(same)) == 1, zip(*names))]
    while words and not words[-1].strip("0123456789"):
        words = words[:-1]
    attempts = {each[-1] for each in names}
    if words and len(attempts) == 1 and re.fullmatch(r"r\d+", names[0][-1]):
        words = [*words, names[0][-1]]
    return "-".join(words) or jobs[0].name


def split_settings(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Parts a command line into what the launcher reads and the settings that it hands on.

    Args:
      argv: with the program's name in front.

    Returns:
      The arguments that are no settings, and those of the form --config.PATH=VALUE.

    Raises:
      ValueError: a setting of another form.
    """
    settings = tuple(text for text in argv[1:] if _LIKE_A_SETTING.fullmatch(text))
    for text in settings:
        if not _SETTING.fullmatch(text):
            raise ValueError(f"{text!r} is not of the form --config.PATH=VALUE.")
    return [text for place, text in enumerate(argv) if place == 0 or text not in settings], settings


def experiment_module(name: str) -> str:
    """Returns the module of an experiment, such as "experiments.paper" for "paper".

    Raises:
      ValueError: there is no such file in experiments/ here; names the nearest.
    """
    module = name if "." in name else f"experiments.{name}"
    package, _, last = module.rpartition(".")
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    folders = [pathlib.Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    if not folders:
        raise ValueError(f"experiment={name!r}: there is no folder {package.replace('.', '/')}/ here; start the "
                         "command in a checkout of the code.")
    known = sorted({path.stem for folder in folders for path in folder.glob("[a-z]*.py")})
    if last not in known:
        raise ValueError(f"experiment={name!r} is not among {', '.join(known)}.{nearest(last, known)}")
    return module


def nearest(word: str, candidates: Iterable[str]) -> str:
    """Returns ` Did you mean "x"?` for the candidate closest to `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f' Did you mean "{found[0]}"?' if found else ""


def _is_utf8(text: str) -> bool:
    """Tells whether a text can be written as UTF-8; an argument with stray bytes cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
