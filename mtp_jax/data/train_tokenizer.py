"""Trains a byte-level BPE tokenizer on a corpus and writes it as one tokenizer.json.

    python -m mtp_jax.data.train_tokenizer --source=stdlib --vocab_size=4096 --output=tokenizer.json

It reads the documents that a run with the same source, filters, seed and validation_fraction trains on, and none of
those that the run or prepare holds out. `--config.data.tokenizer=tokenizer.json` then trains with it.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from typing import Any, NoReturn

from absl import flags

from mtp_jax import commands
from mtp_jax.config import DataConfig
from mtp_jax.data.sources.paths import check_reachable

HELP = {
    "source": "Where documents come from, as in config.data.source: files, jsonl, stdlib, ...",
    "path": "What the source reads: a folder, a file or a glob; may lie in a bucket.",
    "options": "Of a synthetic source, as in config.data.options.",
    "field": "Field that holds the text, for sources that have fields.",
    "validation_path": "Held-out documents, read like --path, if they are not a share of it.",
    "validation_fraction": "Share of files or records held out.",
    "extensions": "File name endings that are read, such as .py,.md; empty: all.",
    "min_bytes": "Leave out documents below this size.",
    "max_bytes": "Leave out documents above this size; 0: no limit.",
    "drop_duplicates": "Leave out documents whose content was there before.",
    "skip_invalid": "Leave out documents that are no UTF-8; otherwise they are an error.",
    "seed": "Of the split, as in config.data.seed.",
}


def define_flags() -> dict[str, Any]:
    """Defines a flag for each data setting that decides which documents are read, with its default; and returns them.

    Not on import: a test or a notebook may import several commands with flags of one name.
    """
    define: dict[type, Any] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float,
                               str: flags.DEFINE_string, tuple: flags.DEFINE_list}
    default = DataConfig()
    return {name: define[type(value)](name, list(value) if isinstance(value, tuple) else value, text)
            for name, text in HELP.items() for value in [getattr(default, name)]}


def main() -> NoReturn:
    """Runs the command."""
    data = define_flags()
    own: dict[str, flags.FlagHolder] = {
        "vocab_size": flags.DEFINE_integer("vocab_size", 4096, "Ids in all: 256 bytes, 3 special tokens, and merges."),
        "sample_bytes": flags.DEFINE_integer("sample_bytes", 0, "Train on so many bytes of randomly drawn documents; "
                                             "0: on all."),
        "output": flags.DEFINE_string("output", "tokenizer.json", "File to write; may lie in a bucket."),
        "overwrite": flags.DEFINE_bool("overwrite", False, "Write over a file that exists."),
    }

    def run() -> int:
        values: dict[str, Any] = {name: flag.value for name, flag in data.items()}
        settings: dict[str, Any] = {name: flag.value for name, flag in own.items()}
        try:
            write(DataConfig(**values | {"extensions": tuple(values["extensions"])}), **settings)
        except (ValueError, OSError) as error:
            return commands.fail(error)
        return 0

    commands.run(run, *data, *own)


def write(config: DataConfig, *, vocab_size: int, sample_bytes: int, output: str, overwrite: bool) -> None:
    """Trains a tokenizer, writes it and says how it came out.

    Args:
      config: of one source.
      vocab_size: see `bpe.train_bpe`.
      sample_bytes: see `bpe.train_bpe`.
      output: path of the file, which ends in .json.
      overwrite: a file there is replaced.

    Raises:
      ValueError: the output exists or does not end in .json, or the corpus or the vocabulary cannot be used.
    """
    from etils import epath

    from mtp_jax.data import bpe  # from here on the imports that take seconds: --help does without

    path = epath.Path(output).expanduser()
    if path.suffix != ".json":
        raise ValueError(f"--output={output!r} must end in .json: that is how data.tokenizer knows the file's kind.")
    check_reachable("--output", output)
    if path.exists() and (path.is_dir() or not overwrite):
        raise ValueError(f"--output={output!r} exists: name another file" + (
            "." if path.is_dir() else ", or give --overwrite. Runs that were trained with it refuse another one."))
    config.validate(num_heads=1)
    start = time.perf_counter()
    trained = bpe.train_bpe(config, vocab_size=vocab_size, sample_bytes=sample_bytes, progress=sys.stderr.isatty())
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(trained.data)
    part.replace(path)
    documents, size, held_out = trained.num_documents, trained.num_bytes, trained.held_out
    print(f"Trained on {documents['train']:,} documents of {size['train'] / 1e6:,.2f} MB, "
          f"{documents['validation']:,} of {size['validation'] / 1e6:,.2f} MB held out"
          f"{f'; {trained.skipped}' if trained.skipped else ''}.")
    print(f"Vocabulary: {vocab_size:,} ids, {vocab_size - bpe.SMALLEST:,} of them merges; made in "
          f"{time.perf_counter() - start:,.1f} s.")
    if held_out.num_tokens:
        print(f"Held-out text: {held_out.bytes_per_token:.3f} bytes a token, {held_out.tokens_per_second:,.0f} tokens "
              "a second on this machine.")
    print(f"Wrote {path}. Train with it:")
    print(f"    python -m experiments.code_bytes --workdir=runs/bpe {config_flags(config, path)}")


def config_flags(config: DataConfig, path: Any) -> str:
    """Returns the flags of a training run on the same corpus with the tokenizer at `path`, for a shell."""
    default = DataConfig()
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)
              if field.name == "source" or getattr(config, field.name) != getattr(default, field.name)}
    values["tokenizer"] = path
    return " ".join(shlex.quote(f"--config.data.{name}={value}") for name, value in values.items())


if __name__ == "__main__":
    main()
