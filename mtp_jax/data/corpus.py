"""A corpus opened: documents read, tokenized, split and indexed, with every check of the data done.

Opening needs no device and imports neither jax nor grain, so that bad input is told before anything slow starts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from absl import logging

from mtp_jax.config import DataConfig, check_choice
from mtp_jax.data import pipeline
from mtp_jax.data.mixture import Mixture
from mtp_jax.data.prepared import open_prepared
from mtp_jax.data.reading import HELD_OUT, SPLITS, Skipped, Text, content_bytes, read_both_paths, split_corpus, where
from mtp_jax.data.rows import RowSource, build_rows
from mtp_jax.data.split import shuffled_names
from mtp_jax.data.tokenizer import Tokenizer, build_tokenizer, ids_dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One source of a corpus, tokenized and split, as rows.

    Attributes:
      name: in the mixture; of a single source, the source's.
      hash: hex sha256 over tokenizer, names and contents of all documents; the same wherever they lie.
      rows: {"train", "validation"} -> the rows of the split.
      num_groups: {"train", "validation"} -> files (or records) in the split.
      num_documents: of both splits.
      skipped: what was left out, in words; "" for nothing.
    """

    name: str
    hash: str
    rows: dict[str, RowSource]
    num_groups: dict[str, int]
    num_documents: int
    skipped: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenized documents, split by file, as rows; from one source or a mixture.

    Attributes:
      config: what it was opened with.
      tokenizer: of the ids.
      parts: {name: source}, in the order of the config.
    """

    config: DataConfig
    tokenizer: Tokenizer
    parts: dict[str, Part]

    @property
    def hash(self) -> str:
        """Hex sha256 over the contents of all parts; that of the part where there is one."""
        if len(self.parts) == 1:
            return next(iter(self.parts.values())).hash
        lines = "".join(f"{part.name}:{part.hash}\n" for part in self.parts.values())
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def num_tokens(self) -> int:
        """Tokens of all parts and splits, BOS and EOS of each document included."""
        return sum(rows.num_tokens for part in self.parts.values() for rows in part.rows.values())

    @property
    def num_documents(self) -> int:
        """Documents of all parts and splits."""
        return sum(part.num_documents for part in self.parts.values())

    def num_rows(self, split: str) -> int:
        """Returns the rows of `split`, "train" or "validation", over all parts, each counted once.

        Raises:
          ValueError: there is no such split.
        """
        check_choice("split", split, SPLITS)
        return sum(len(part.rows[split]) for part in self.parts.values())

    def summary(self, num_steps: int | None = None) -> str:
        """Returns one plain line a part on what the corpus holds, and of a mixture what a run reads of each part.

        Args:
          num_steps: batches of the run; None leaves out what it reads.
        """
        lines = {name: self._summary(part) for name, part in self.parts.items()}
        if self.config.mixture and num_steps is not None:
            counts, limits = self.mixture.counts(num_steps * self.config.batch_size), self.mixture.epochs
            for name, count in counts.items():
                share = count / max(sum(counts.values()), 1)
                lines[name] += (f"; {share:.3g} of this run's rows: {count:,}, "
                                f"{count / len(self.parts[name].rows['train']):.3g} epochs"
                                + (f" of at most {limits[name]:g}" if name in limits else ""))
        return "\n".join(lines.values())

    @property
    def mixture(self) -> Mixture:
        """The training rows of all parts: their shares, and where their epochs end."""
        return Mixture.create({name: part.rows["train"] for name, part in self.parts.items()}, self.config.mixture)

    def check_steps(self, num_steps: int) -> None:
        """Checks that the epochs of a mixture last for a run.

        Args:
          num_steps: batches of the run.

        Raises:
          ValueError: they do not; names the source that ends first.
        """
        mixture = self.mixture
        if mixture.length is not None and num_steps * self.config.batch_size > mixture.length:
            raise ValueError(f"train.num_steps={num_steps} needs more rows than the mixture has. "
                             + mixture.too_short(self.config.batch_size))

    def _summary(self, part: Part) -> str:
        config = self.config.parts[part.name]
        train, validation = (part.num_groups[split] for split in SPLITS)
        name = f"{config.source} {config.path}".strip()
        tokens = sum(rows.num_tokens for rows in part.rows.values())
        shares = f"({train:,} to train on, {validation:,} held out)"
        documents = f"{part.num_documents:,} documents"
        if config.source in ("files", "stdlib") or train + validation != part.num_documents:
            documents = f"{train + validation:,} files {shares}, {documents}"
        else:  # each record is held out by itself
            documents = f"{documents} {shares}"
        return (f"{f'{part.name}: ' if self.config.mixture else ''}{name}: {documents}, {tokens:,} tokens, "
                f"{len(part.rows['train']):,} training rows of {self.config.seq_len:,} tokens"
                f"{'; ' + part.skipped if part.skipped else ''}")

    def train_batches(self, rows: Iterable[int] | None = None, next_row: int = 0) -> pipeline.TrainBatches:
        """Returns the training batches of one host, from global row `next_row` on; endless, unless epochs are limited.

        Args:
          rows: which rows of a batch this host reads, from 0, ascending (`Program.rows_of_process`); None: all B.
          next_row: that of a saved state; 0 starts anew.

        Raises:
          ValueError: a number is out of range.
        """
        return pipeline.TrainBatches(
            self.mixture, batch_size=self.config.batch_size, seed=self.config.seed, share=rows, next_row=next_row,
            num_workers=self.config.num_workers)

    def validation_batches(self, rows: Iterable[int] | None = None) -> dict[str, pipeline.ValidationBatches]:
        """Returns one host's validation batches of each part, at most data.validation_batches, always the same rows.

        Args:
          rows: which rows of a batch this host reads, from 0, ascending (`Program.rows_of_process`); None: all B.

        Raises:
          ValueError: a number is out of range.
        """
        return {name: pipeline.validation_batches(
            part.rows["validation"], batch_size=self.config.batch_size, seed=self.config.seed,
            max_batches=self.config.validation_batches, share=rows) for name, part in self.parts.items()}


def open_corpus(config: DataConfig) -> Corpus:
    """Reads, tokenizes, splits and indexes the documents that the config names.

    Documents that are empty or no text are skipped; the summary counts them.

    Args:
      config: the data section of a run's config.

    Returns:
      The corpus; prepared sources stay on disk, all others are in memory.

    Raises:
      ValueError: unknown source or tokenizer, a path that names nothing, a document that cannot be read, or a corpus
        that cannot be trained on; names the field, its value and the remedy.
    """
    tokenizer = build_tokenizer(config)
    parts: dict[str, Part] = {}
    for name, part in config.parts.items():
        try:
            parts[name] = (open_part if part.source == "prepared" else read_part)(name, part, tokenizer)
        except ValueError as error:
            if not config.mixture:
                raise
            raise ValueError(f"data.mixture of {name!r}: {error}") from error
    return Corpus(config, tokenizer, parts)


def open_part(name: str, config: DataConfig, tokenizer: Tokenizer) -> Part:
    """Opens a prepared source, which stays on disk.

    Args:
      name: of the part.
      config: of this source.
      tokenizer: of the ids.

    Raises:
      ValueError: see `prepared.open_prepared`.
    """
    opened = open_prepared(config, tokenizer)
    rows: dict[str, RowSource] = {**opened.rows}
    _warn_of_few_rows(rows, config)
    return Part(name=name, hash=opened.manifest.hash, rows=rows, num_documents=opened.manifest.documents,
                skipped=opened.manifest.left_out,
                num_groups={split: files.groups for split, files in opened.manifest.splits.items()})


def read_part(name: str, config: DataConfig, tokenizer: Tokenizer) -> Part:
    """Reads one source into memory.

    Args:
      name: of the part.
      config: of this source.
      tokenizer: of the ids.

    Raises:
      ValueError: see `open_corpus`.
    """
    digest = hashlib.sha256(tokenizer.hash.encode())
    group_of: dict[str, str] = {}
    skipped = Skipped()
    texts = sorted(read_both_paths(config, skipped, takes_bytes=tokenizer.takes_bytes, vocab_size=tokenizer.vocab_size),
                   key=lambda text: text.name)
    for text in texts:
        if text.name in group_of:
            raise ValueError(f"{where(config)} yields two documents named {text.name!r}: names must differ.")
        for part in (text.name.encode("utf-8", "surrogateescape"), content_bytes(text.content)):
            digest.update(len(part).to_bytes(8, "big"))  # framed: names and contents cannot trade bytes
            digest.update(part)
        group_of[text.name] = text.group
    ids = dict(zip(group_of, _tokenize(texts, tokenizer)))
    if skipped.count["binary"] or skipped.count["not UTF-8"]:
        logging.warning("%s: %s", where(config), skipped)
    _warn_of_both_sides(texts, config)
    left_out = f"; {skipped}" if skipped.count else ""
    if max(map(len, ids.values()), default=0) < 2:
        ids_instead = (", or set data.field to the type of its records' ids"
                       if config.source == "array_record" and skipped.count["binary"] else "")
        raise ValueError(f"{where(config)} holds no document longer than one token ({len(ids)} documents{left_out}): "
                         "nothing can be predicted from it; name a corpus of UTF-8 text, and check its filters"
                         f"{ids_instead}.")
    split = split_corpus(group_of.values(), config, skipped)
    order = shuffled_names(ids, seed=config.seed, purpose="documents")
    rows: dict[str, RowSource] = {name: build_rows([ids[key] for key in order if group_of[key] in members],
                             bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
                             seq_len=config.seq_len, dtype=ids_dtype(tokenizer.vocab_size))
            for name, members in split.items()}
    _warn_of_few_rows(rows, config)
    return Part(name=name, hash=digest.hexdigest(), rows=rows, num_documents=len(ids), skipped=str(skipped),
                num_groups={name: len(members) for name, members in split.items()})


def _tokenize(texts: Sequence[Text], tokenizer: Tokenizer, batch_size: int = 256) -> Iterator[np.ndarray]:
    """Yields the ids of each text; many at a time, for some tokenizers then use all cores."""
    for start in range(0, len(texts), batch_size):
        batch = [text.content for text in texts[start:start + batch_size]]
        encoded = iter(tokenizer.encode_batch([content for content in batch if isinstance(content, bytes)]))
        for content in batch:
            yield next(encoded) if isinstance(content, bytes) else content


def _warn_of_both_sides(texts: Sequence[Text], config: DataConfig) -> None:
    """Warns of documents that are trained on and held out; only a `validation_path` can bring them."""
    if not config.validation_path:
        return
    held = {text.digest for text in texts if text.group.startswith(HELD_OUT)}
    both = [text.name for text in texts if not text.group.startswith(HELD_OUT) and text.digest in held]
    if both:
        logging.warning("%s: %d documents are in data.validation_path=%r too (such as %s), and the run trains on what "
                        "it is measured by. data.drop_duplicates=True leaves them out of training.", where(config),
                        len(both), config.validation_path, both[0])


def _warn_of_few_rows(rows: dict[str, RowSource], config: DataConfig) -> None:
    """Warns of a corpus that does not fill a batch."""
    if len(rows["train"]) < config.batch_size:
        logging.warning("%s gives %d training rows of data.seq_len=%d, fewer than data.batch_size=%d: a batch repeats "
                        "rows. A smaller data.seq_len or data.batch_size, or more text, avoids it.", where(config),
                        len(rows["train"]), config.seq_len, config.batch_size)
