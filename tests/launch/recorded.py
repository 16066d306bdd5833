"""The calls that --dry_run prints, compared with recorded ones.

Record them anew with MTP_JAX_RECORD=1 and read the difference.
"""

import os
import pathlib

from launch import command

FOLDER = pathlib.Path(__file__).parent / "recorded"


def check(name, engine, arguments, capsys):
    """Runs a launch command with --dry_run and compares what it prints with recorded/<name>.txt."""
    status = command.main(engine, ["launch", *arguments, "--dry_run"])
    printed = capsys.readouterr().out
    assert status == 0
    path = FOLDER / f"{name}.txt"
    if os.environ.get("MTP_JAX_RECORD"):
        FOLDER.mkdir(exist_ok=True)
        path.write_text(printed)
    assert printed == path.read_text()
