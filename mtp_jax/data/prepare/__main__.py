"""Prepares a corpus: reads, filters, splits and tokenizes it once, in parallel, into a folder to train from.

    python -m mtp_jax.data.prepare --source=files --path="src/**/*.py" --output=prepared

Stopped in any way, the same command goes on with what is not done. The result does not depend on that, nor on
--processes. What follows -- is for Apache Beam, which then runs it: -- --runner=DataflowRunner ... (docs/data.md).
"""

from __future__ import annotations

import errno
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags

from mtp_jax import commands
from mtp_jax.config import DataConfig
from mtp_jax.data.sources.paths import check_reachable
from mtp_jax.data.train_tokenizer import define_flags

UNFINISHED, INTERRUPTED = 75, 130  # exit status after SIGTERM and after Ctrl-C, as in training
GO_ON = "What is done stays: run the same command again to go on."


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def main() -> NoReturn:
    """Runs the command."""
    beam_options = _after_dashes()
    data = define_flags()
    data["tokenizer"] = flags.DEFINE_string("tokenizer", "bytes", "\"bytes\", or a file: Hugging Face's tokenizer.json "
                                            "or SentencePiece's .model.")
    output = flags.DEFINE_string("output", None, "Folder to write: shards of tokens, an index and manifest.json. May "
                                 "lie in a bucket.", required=True)
    processes = flags.DEFINE_integer("processes", None, "Processes that read and tokenize; by default one a core.",
                                     lower_bound=1)

    def run() -> int:
        values: dict[str, Any] = {name: flag.value for name, flag in data.items()}
        signal.signal(signal.SIGTERM, _terminate)
        try:
            write(DataConfig(**values | {"extensions": tuple(values["extensions"])}), output.value, processes.value,
                  beam_options)
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, Terminated)
            commands.fail(f"stopped by {'SIGTERM' if terminated else 'Ctrl-C'}. {GO_ON}")
            return UNFINISHED if terminated else INTERRUPTED
        except ValueError as error:
            return commands.fail(error)
        except MemoryError:
            return commands.fail(f"memory ran out; fewer --processes need less. {GO_ON}")
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                return commands.fail(error)
            return commands.fail(f"the disk is full: {error.filename or output.value} could not be written. What is "
                                 "done stays: free some space and run the same command again.")
        return 0

    commands.run(run, *data, "output", "processes")


def write(config: DataConfig, output: str, processes: int | None, beam_options: Sequence[str] | None = None) -> None:
    """Prepares a corpus and says what came out.

    Args:
      config: of one source.
      output: folder to write.
      processes: that read and tokenize; None: one a core.
      beam_options: for Apache Beam to run it; None: the processes of this machine do.

    Raises:
      ValueError: the source, the tokenizer or the folder cannot be used.
      OSError: the disk is full, or the folder cannot be written.
    """
    from etils import epath

    from mtp_jax.data.prepare import beam, finished, local, make_plan
    from mtp_jax.data.prepare.shard import WORK

    if processes is not None and beam_options is not None:
        raise ValueError(f"--processes={processes} is for this machine, and what follows -- for Apache Beam: give one.")
    if beam_options is not None:
        beam.quieten()
    check_reachable("--output", output)
    folder = epath.Path(output).expanduser()
    start = time.perf_counter()
    plan = make_plan(config)
    before, resumed = finished(plan, folder), (folder / WORK).exists()
    if before is None:
        print(f"{plan.size / 1e6:,.1f} MB in {len(plan.shards):,} shards -> {folder}", file=sys.stderr, flush=True)
    try:
        manifest = (local.prepare(plan, folder, processes=processes) if beam_options is None else
                    beam.prepare(plan, folder, options=beam_options))
    except (local.WorkerDied, beam.PipelineFailed) as error:
        raise ValueError(str(error)) from error
    seconds = time.perf_counter() - start
    for name, split in manifest.splits.items():
        print(f"{name}: {split.groups:,} files or records, {split.documents:,} documents, {split.tokens:,} tokens, "
              f"{split.bytes / 1e6:,.2f} MB of text")
    if manifest.skipped:
        print(manifest.left_out)
    print(f"{manifest.bytes / manifest.tokens:.3f} bytes a token; " + (
        f"{folder} was finished before: nothing was done" if before else f"finished in {seconds:,.1f} s" if resumed else
        f"{plan.size / 1e6 / seconds:,.1f} MB a second"))
    settings = {"source": "prepared", "path": folder}
    if manifest.tokenizer["file"]:
        settings["tokenizer"] = folder / manifest.tokenizer["file"]
    elif manifest.tokenizer["name"] != "bytes":
        settings["tokenizer"] = config.tokenizer
    print("Train on it:\n    python -m experiments.code_bytes --workdir=runs/mine "
          + " ".join(shlex.quote(f"--config.data.{name}={value}") for name, value in settings.items()))


def _after_dashes() -> list[str] | None:
    """Takes -- and what follows it off the command line and returns what follows; None without --."""
    if "--" not in sys.argv:
        return None
    place = sys.argv.index("--")
    after = sys.argv[place + 1:]
    del sys.argv[place:]
    return after


def _terminate(number: int, frame: Any) -> NoReturn:
    raise Terminated


if __name__ == "__main__":
    main()
