"""Settings of the token stream."""

from __future__ import annotations

import dataclasses
import math

from mtp_jax.config.checks import check_positive, check_seed


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """One source of a mixture. Identity. Fields that `DataConfig` has too mean the same there."""

    name: str  # in metrics and messages; unique in the mixture
    weight: float | None = None  # share of training rows; all sum to 1. None for all: shares follow rows x epochs
    epochs: float | None = None  # passes over the source, at most; a run that needs more is refused. None: no limit
    source: str = "files"
    path: str = ""
    options: str = ""
    field: str = "text"
    validation_path: str = ""
    validation_fraction: float | None = None  # None: data.validation_fraction
    extensions: tuple[str, ...] = ()
    min_bytes: int = 0
    max_bytes: int = 0
    drop_duplicates: bool = False
    skip_invalid: bool = False

    def validate(self) -> None:
        where = f"data.mixture of {self.name!r}"
        if not self.name or not set(self.name).isdisjoint("/ \t\n"):
            raise ValueError(f"data.mixture has a source named {self.name!r}: give a name without spaces and slashes.")
        if self.weight is not None and not 0 < self.weight <= 1:
            raise ValueError(f"{where}: weight={self.weight} must lie in (0, 1]: it is a share of the training rows. "
                             "Leave out a source that is not to be read.")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"{where}: epochs={self.epochs} must be above 0, and finite; None sets no limit.")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The token stream. Identity, but for `num_workers` and `validation_batches`, and for paths to the same content."""

    source: str = "stdlib"  # where documents come from, by name; see docs/data.md
    path: str = ""  # what the source reads: a folder, a file, a glob such as "src/**/*.py", a TFDS name; or a bucket's
    options: str = ""  # of a synthetic source, such as "operations=5,pause=0"; see mtp_jax/data/tasks/
    field: str = "text"  # sources "jsonl", "parquet", "tfds": the field that holds the text; "array_record": see there
    validation_path: str = ""  # held-out documents, read like `path`; empty: a share of those of `path`
    validation_fraction: float = 0.05  # share of files (or records) held out; at least one
    extensions: tuple[str, ...] = ()  # source "files": file name endings that are read, such as (".py", ".md"); (): all
    min_bytes: int = 0  # documents below this size are left out, bytes of text
    max_bytes: int = 0  # documents above this size are left out, bytes of text; 0: no limit
    drop_duplicates: bool = False  # leave out documents whose content was there before, exactly
    skip_invalid: bool = False  # leave out documents that are no UTF-8; False: an error, but with tokenizer "bytes"
    mixture: tuple[MixtureConfig, ...] = ()  # several sources, each with its own fields above; then those stay default
    tokenizer: str = "bytes"  # "bytes", or a file: Hugging Face's tokenizer.json or SentencePiece's .model
    batch_size: int = 16  # B, rows a step over all hosts
    seq_len: int = 256  # L, tokens a row
    seed: int = 0  # of the split and the order of rows
    validation_batches: int = 8  # batches of a validation pass over each source, always the same rows
    num_workers: int = 0  # processes that read and pack; 0: a thread of this process

    @property
    def parts(self) -> dict[str, DataConfig]:
        """{name: config of one source}: those of the mixture, or this one alone under its source's name."""
        if not self.mixture:
            return {self.source: self}
        shared = {field.name for field in dataclasses.fields(DataConfig)}
        return {part.name: dataclasses.replace(self, mixture=(), **{
            field.name: getattr(part, field.name) for field in dataclasses.fields(MixtureConfig)
            if field.name in shared and getattr(part, field.name) is not None}) for part in self.mixture}

    def validate(self, num_heads: int) -> None:
        check_positive("data", self, "batch_size", "seq_len", "validation_batches")
        check_positive("data", self, "num_workers", "min_bytes", "max_bytes", minimum=0)
        check_seed("data", self)
        if self.seq_len <= num_heads:
            raise ValueError(f"data.seq_len={self.seq_len} leaves head {num_heads} no target, for a row holds its own "
                             f"targets: choose data.seq_len > model.num_heads={num_heads}.")
        self.validate_mixture()
        for name, part in self.parts.items():
            where = f"data.mixture of {name!r}: " if self.mixture else "data."
            if not 0 < part.validation_fraction < 1:
                raise ValueError(f"{where}validation_fraction={part.validation_fraction} must lie between 0 and 1.")
            if part.min_bytes < 0 or part.max_bytes < 0 or 0 < part.max_bytes < part.min_bytes:
                raise ValueError(f"{where}min_bytes={part.min_bytes} and max_bytes={part.max_bytes} let no document "
                                 "through: both are sizes in bytes, and 0 is no limit.")

    def validate_mixture(self) -> None:
        """Raises ValueError unless the mixture's names, weights and epochs make sense together."""
        if not self.mixture:
            return
        default = DataConfig()
        for name in ("source", "path", "options", "field", "validation_path", "extensions", "min_bytes", "max_bytes",
                     "drop_duplicates", "skip_invalid"):
            if getattr(self, name) != getattr(default, name):
                raise ValueError(f"data.{name}={getattr(self, name)!r} is not read beside data.mixture: set it in the "
                                 "entries of data.mixture.")
        for part in self.mixture:
            part.validate()
        names = [part.name for part in self.mixture]
        if len(set(names)) < len(names):
            raise ValueError(f"data.mixture names {names}: every source needs a name of its own.")
        weights = {part.name: part.weight for part in self.mixture}
        given = [weight for weight in weights.values() if weight is not None]
        if given and len(given) < len(weights):
            raise ValueError(f"data.mixture has the weights {weights}: give all of them, or none.")
        if given and not math.isclose(sum(given), 1.0, abs_tol=1e-6):
            raise ValueError(f"data.mixture has the weights {weights}, which sum to {sum(given):g}: they are shares of "
                             "the training rows and must sum to 1.")
