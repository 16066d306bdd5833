"""What all commands share: plain messages, flags that explain themselves, errors without a traceback."""

from __future__ import annotations

import dataclasses
import inspect
import logging as python_logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from mtp_jax.config import Config, from_config_dict, nearest

_DEFINE: dict[type, Callable[..., Any]] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer,
                                           float: flags.DEFINE_float, str: flags.DEFINE_string}
_DEFINE_FIELD: dict[str, Callable[..., Any]] = {**{kind.__name__: define for kind, define in _DEFINE.items()},
                                                "tuple[str, ...]": flags.DEFINE_multi_string}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment's settings, once its flags are defined.

    Attributes:
      config: holds the ConfigDict with what --config.PATH=VALUE changed, after the flags are parsed.
      default: the experiment's own settings, for the parameters that the command line gives.
      names: flags that `--help` is to show.
    """

    config: flags.FlagHolder
    default: Config
    names: tuple[str, ...]


def run(main: Callable[[], int], *names: str) -> NoReturn:
    """Parses the flags, calls `main` and exits with its status.

    Args:
      main: the command.
      names: flags that `--help` shows, in any order.
    """
    for name in names:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])

    def start(argv: list[str]) -> int:
        if len(argv) > 1:
            return fail(f"unexpected arguments {' '.join(argv[1:])}: settings are written --NAME=VALUE.")
        quieten()
        return main()

    app.run(start)


def define_flags(settings: type[Any]) -> dict[str, flags.FlagHolder]:
    """Defines a flag for each field of a dataclass made of `mtp_jax.config.generation.flag`; and returns them."""
    own = {}
    for field in dataclasses.fields(settings):
        kind = str(field.type).removesuffix(" | None")
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        own[field.name] = _DEFINE_FIELD[kind](field.name, default, field.metadata["help"])
    return own


def values_of(own: dict[str, flags.FlagHolder]) -> dict[str, Any]:
    """Returns the values of the flags of `define_flags`, lists as tuples."""
    return {name: tuple(flag.value) if isinstance(flag.value, list) else flag.value for name, flag in own.items()}


def define_experiment(get_config: Callable[..., Any]) -> Experiment:
    """Defines --config.PATH=VALUE and, for each parameter of `get_config`, --config.PARAMETER=VALUE.

    A parameter is read before the others, since the settings follow from it, and what PATH says goes over them. A path
    or parameter that does not exist ends the command with the nearest one.

    Args:
      get_config: returns the experiment's ConfigDict. Its parameters have defaults of type str, int, float or bool, and
        are explained in its docstring's Args.
    """
    own, problem = _parameters(get_config), ""
    try:
        config, argv = _config_of(get_config, own, sys.argv)
        default = from_config_dict(config)
    except (ValueError, OSError, flags.Error) as error:
        if not _asks_for_help(sys.argv):
            sys.exit(fail(error))
        config, default, argv, problem = _nothing(), Config(), sys.argv[:1], f"None yet: {error}"
    flags.FLAGS.append_flag_values(own)
    try:
        holder = _define_config(config, argv, problem or _settings(config), flags.FLAGS)
    except ValueError as error:
        sys.exit(fail(error))
    return Experiment(holder, default, (*own, "config"))


def read_config(get_config: Callable[..., Any], settings: Sequence[str]) -> Config:
    """Returns the config that an experiment has with these settings, read as its own command reads them.

    Args:
      get_config: as for `define_experiment`.
      settings: arguments "--config.PATH=VALUE"; a later one goes over an earlier one.

    Returns:
      The config, not yet validated. No flag of this process is defined or changed.

    Raises:
      ValueError: a path that does not exist, or a value of the wrong type.
    """
    own, values = _parameters(get_config), flags.FlagValues()
    try:
        config, argv = _config_of(get_config, own, ["settings", *settings])
        holder = _define_config(config, argv, "", values)
        values(argv)
    except flags.Error as error:
        raise ValueError(str(error)) from error
    return from_config_dict(holder.value)


def fail(message: Any, where: str = "") -> int:
    """Prints an error for a person, with `where` it happened before it, and returns the exit status 1."""
    if isinstance(message, OSError) and message.filename is not None:
        message = f"{message.filename}: {message.strerror}"
    print(f"error: {where}{message}", file=sys.stderr, flush=True)
    return 1


def quieten() -> None:
    """Shows our own messages plainly, and of other libraries' (Orbax tells every file) only the warnings.

    Orbax's tracebacks go: what fails in its threads is raised to the run as well, and told once.
    """
    own = os.path.dirname(os.path.abspath(__file__)) + os.sep

    def keep(record: python_logging.LogRecord) -> bool:
        if record.pathname.startswith(own):
            return True
        if "orbax" in record.pathname:
            record.exc_info = None
        return record.levelno >= python_logging.WARNING

    handler = logging.get_absl_handler()
    handler.addFilter(keep)
    handler.setFormatter(python_logging.Formatter("%(levelname)s: %(message)s"))


def _parameters(get_config: Callable[..., Any]) -> flags.FlagValues:
    """Returns a flag for each parameter of an experiment's get_config."""
    own = flags.FlagValues()
    page = inspect.getdoc(get_config) or ""
    for name, parameter in inspect.signature(get_config).parameters.items():
        if type(parameter.default) not in _DEFINE:
            raise TypeError(f"get_config's parameter {name} needs a default of type str, int, float or bool.")
        told = re.search(rf"^ +{name}: (.+(?:\n {{4,}}.+)*)", page, re.MULTILINE)
        text = re.sub(r"\s+", " ", told[1]) if told else "See the experiment's header."
        _DEFINE[type(parameter.default)](f"config.{name}", parameter.default, text, flag_values=own)
    return own


def _config_of(get_config: Callable[..., Any], own: flags.FlagValues, argv: Sequence[str]) -> tuple[Any, list[str]]:
    """Returns an experiment's ConfigDict for the parameters that `argv` gives, and the other arguments."""
    known = [name.removeprefix("config.") for name in own] + [field.name for field in dataclasses.fields(Config)]
    rest = own(list(argv), known_only=True)
    _check_names(rest, known)
    return get_config(**{name.removeprefix("config."): own[name].value for name in own}), rest


def _check_names(argv: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError where an argument --config.NAME... starts with none of the known names."""
    for argument in argv[1:]:
        found = re.match(r"--?(?:no)?config\.([^.=]+)", argument)
        if found and found[1] not in known:
            raise ValueError(f"--config has no field {found[1]!r}.{nearest(found[1], known)}")


def _define_config(config: Any, argv: Sequence[str], text: str, values: flags.FlagValues) -> flags.FlagHolder:
    """Defines --config among `values`, with this help, and its overrides in `argv`; ValueError for a wrong path."""
    from ml_collections import config_flags  # only commands that take a config need it

    try:
        holder = config_flags.DEFINE_config_dict("config", config, text, flag_values=values, sys_argv=list(argv))
    except (KeyError, AttributeError) as error:  # it parses the overrides here; a wrong path surfaces as one of these
        cause = error.args[0] if error.args else error
        text = str(cause.args[0] if isinstance(cause, KeyError) and cause.args else cause)
        raise ValueError("--config has no field " + text.replace("\n", ". ")) from error
    values["config"].default_as_str = None  # --help need not show them a second time, as YAML
    return holder


def _asks_for_help(argv: Sequence[str]) -> bool:
    """Tells whether the command line asks for help in one of absl's words."""
    return any(re.fullmatch(r"-h|-\?|--?help(short|full|xml)?", argument) for argument in argv[1:])


def _nothing() -> Any:
    """Returns a ConfigDict without fields."""
    from ml_collections import config_dict

    return config_dict.ConfigDict()


def _settings(config: Any) -> str:
    """Returns the help of --config: every field of a ConfigDict with its value."""
    lines = [f"  --config.{section}.{name}={config[section][name]!r}" for section in config for name in config[section]]
    return ("The settings of the experiment, each changed by --config.PATH=VALUE; mtp_jax/config/ says what they "
            "mean. They are:\n" + "\n".join(lines))
