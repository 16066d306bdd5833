"""What the launch commands share: flags from an engine's Options, the plan before it costs, errors as one line."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from launch import calls as calls_lib
from launch import job as job_lib
from launch.calls import Call
from launch.job import Job

_DEFINE: dict[Any, Callable[..., Any]] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer,
                                          str: flags.DEFINE_string, tuple[str, ...]: flags.DEFINE_multi_string}


@dataclasses.dataclass(frozen=True)
class Engine:
    """What starts jobs.

    Attributes:
      page: the command's help, in front of the flags.
      options: dataclass of its options; each field has a default and metadata {"help": ...}.
      submit: returns the calls that start these jobs.
      describe: returns the plan of these jobs for a person: what is taken, what it does, how it is undone.
      free: actions that change nothing, from the job's name.
      ending: actions that end something, from the job's name; they need --yes.
    """

    page: str
    options: type
    submit: Callable[[Sequence[Job], Any], list[Call]]
    describe: Callable[[Sequence[Job], Any], str]
    free: Mapping[str, Callable[[str, Any], list[Call]]]
    ending: Mapping[str, Callable[[str, Any], list[Call]]]


def option(default: Any, text: str) -> Any:
    """Returns a field of an Options dataclass, with its help."""
    return dataclasses.field(default=default, metadata={"help": text})


def define_options(options: type, values: flags.FlagValues, prefix: str = "") -> None:
    """Defines a flag for each field of an Options dataclass.

    Args:
      options: the dataclass.
      values: where the flags are defined.
      prefix: put before each name, where another command has flags of its own.
    """
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        _DEFINE[hints[field.name]](prefix + field.name, default, field.metadata["help"], flag_values=values)


def read_options(options: type, values: flags.FlagValues, prefix: str = "") -> Any:
    """Returns the Options that the parsed flags tell; not validated yet."""
    told = {field.name: values[prefix + field.name].value for field in dataclasses.fields(options)}
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})


def main(engine: Engine, argv: Sequence[str]) -> int:
    """Runs a launch command and returns its exit status.

    Args:
      engine: what starts the job.
      argv: with the program's name in front.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("experiment", "", "Name of the experiment, such as paper for experiments/paper.py.",
                        flag_values=values)
    flags.DEFINE_string("workdir", "", "Folder of the run, reached by every host under this name. A run that was "
                        "stopped goes on from its last checkpoint.", flag_values=values)
    flags.DEFINE_string("name", "", "What the engine calls the job; empty: made of the workdir's last part.",
                        flag_values=values)
    flags.DEFINE_enum("action", "start", ["start", *engine.free, *engine.ending],
                      "What to do; all but start need only --name and where the job is.", flag_values=values)
    flags.DEFINE_bool("yes", False, "Do it. Without it the plan is printed and nothing happens.", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "Print the exact calls and make none.", flag_values=values)
    define_options(engine.options, values)
    if {"--help", "-h", "-help", "-?"} & set(argv[1:]):
        print(f"{inspect.cleandoc(engine.page)}\n\nFlags, and --config.PATH=VALUE for the experiment's settings:\n"
              f"{values.get_help()}")
        return 0
    try:
        rest, settings = job_lib.split_settings(argv)
        left = values(rest)
        if len(left) > 1:
            raise ValueError(f"unexpected arguments {' '.join(left[1:])}: settings are written --NAME=VALUE.")
        options = read_options(engine.options, values)
        action = values.action
        if action == "start":
            job = _job(values, settings)
            todo = engine.submit([job], options)
            what = engine.describe([job], options)
        else:
            name = values.name or job_lib.name_from(_last(values.workdir))
            if not (values.name or values.workdir):
                raise ValueError(f"action={action} needs --name, or the --workdir that the name was made of.")
            todo = {**engine.free, **engine.ending}[action](name, options)
            what = f"{action} of {name}"
    except (ValueError, OSError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return calls_lib.perform(todo, yes=values.yes or action in engine.free, dry_run=values.dry_run, what=what)


def _job(values: flags.FlagValues, settings: tuple[str, ...]) -> Job:
    """Returns the job that the flags tell."""
    for name in ("experiment", "workdir"):
        if not values[name].value:
            raise ValueError(f"--{name} is needed, such as "
                             f"{'--experiment=paper' if name == 'experiment' else '--workdir=gs://BUCKET/paper_7b'}.")
    name, module = values.name or job_lib.name_from(_last(values.workdir)), job_lib.experiment_module(values.experiment)
    check_settings(module, settings)
    return Job(name, module, values.workdir, settings)


def check_settings(module: str, settings: Sequence[str]) -> None:
    """Raises ValueError where an experiment does not take these settings, before a machine is paid for.

    Where mtp_jax, or what it needs to read a config, is not installed, a line on stderr says that nothing was checked.

    Args:
      module: of the experiment.
      settings: arguments "--config.PATH=VALUE".
    """
    try:
        import ml_collections  # noqa: F401  (what read_config imports first)

        from mtp_jax import commands  # only here: a launcher runs where there may be no mtp_jax
    except ModuleNotFoundError as error:
        print(f"launch: the settings were not checked, for mtp_jax cannot be imported here: {error}.", file=sys.stderr)
        return
    get_config = getattr(importlib.import_module(module), "get_config", None)
    if get_config is None:
        raise ValueError(f"experiment={module!r}: the module has no get_config().")
    commands.read_config(get_config, settings).validate()


def _last(path: str) -> str:
    """Returns the last part of a path."""
    return path.rstrip("/").rpartition("/")[2]
