"""What all commands share: plain messages, flags that explain themselves, errors without a traceback."""

from __future__ import annotations

import logging as python_logging
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging


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
            return fail(f"unexpected arguments {' '.join(argv[1:])}: settings are written --config.PATH=VALUE.")
        quieten()
        return main()

    app.run(start)


def define_config(config: Any) -> flags.FlagHolder:
    """Defines --config and --config.PATH=VALUE; a path that does not exist ends the command with the nearest one.

    Args:
      config: the experiment's ConfigDict.
    """
    from ml_collections import config_flags  # only commands that take a config need it

    try:
        holder = config_flags.DEFINE_config_dict("config", config, _settings(config))
    except (KeyError, AttributeError) as error:  # it reads sys.argv here, and a wrong path surfaces as one of these
        cause = error.args[0] if error.args else error
        text = str(cause.args[0] if isinstance(cause, KeyError) and cause.args else cause)
        sys.exit(fail("--config has no field " + text.replace("\n", ". ")))
    flags.FLAGS["config"].default_as_str = None  # --help need not show them a second time, as YAML
    return holder


def fail(message: Any) -> int:
    """Prints an error for a person and returns the exit status 1."""
    if isinstance(message, OSError) and message.filename is not None:
        message = f"{message.filename}: {message.strerror}"
    print(f"error: {message}", file=sys.stderr, flush=True)
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


def _settings(config: Any) -> str:
    """Returns the help of --config: every field of a ConfigDict with its value."""
    lines = [f"  --config.{section}.{name}={config[section][name]!r}" for section in config for name in config[section]]
    return ("The settings of the experiment, each changed by --config.PATH=VALUE; mtp_jax/config/ says what they "
            "mean. They are:\n" + "\n".join(lines))
