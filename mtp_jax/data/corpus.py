"""A corpus opened: documents read, tokenized, split and indexed, with every check of the data done.

Opening needs no device and imports neither jax nor grain, so that bad input is told before anything slow starts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from concurrent import futures

import numpy as np
from absl import logging

from mtp_jax.config import DataConfig, check_choice
from mtp_jax.data import pipeline
from mtp_jax.data.rows import Rows, build_rows
from mtp_jax.data.sources import Document, read_documents
from mtp_jax.data.split import shuffled_names, split_groups
from mtp_jax.data.tokenizer import Tokenizer, build_tokenizer

SPLITS = ("train", "validation")
READ_THREADS = 8  # hides the latency of files in a bucket


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenized documents, split by file, as rows.

    Attributes:
      config: what it was opened with.
      tokenizer: of the ids.
      hash: hex sha256 over tokenizer, names and contents of all documents; the same wherever the corpus lies.
      rows: {"train", "validation"} -> the rows of the split.
      groups: {"train", "validation"} -> names of the files in the split.
      skipped: what was left out, in words; "" for nothing.
    """

    config: DataConfig
    tokenizer: Tokenizer
    hash: str
    rows: dict[str, Rows]
    groups: dict[str, frozenset[str]]
    skipped: str = ""

    @property
    def num_tokens(self) -> int:
        """Tokens of both splits, BOS and EOS of each document included."""
        return sum(len(rows.tokens) for rows in self.rows.values())

    @property
    def num_documents(self) -> int:
        """Documents of both splits."""
        return sum(len(rows.bounds) - 1 for rows in self.rows.values())

    def num_rows(self, split: str) -> int:
        """Returns the rows of an epoch of `split`, "train" or "validation".

        Raises:
          ValueError: there is no such split.
        """
        check_choice("split", split, SPLITS)
        return len(self.rows[split])

    def summary(self) -> str:
        """Returns one plain line on what the corpus holds."""
        held = sum(rows.tokens.nbytes for rows in self.rows.values()) / 1e6
        train, validation = (len(self.groups[split]) for split in SPLITS)
        name = f"{self.config.source} {self.config.path}".strip()
        return (f"{name}: {train + validation:,} files ({train:,} to train on, {validation:,} held out), "
                f"{self.num_documents:,} documents, {self.num_tokens:,} tokens, {held:,.1f} MB in memory, "
                f"{self.num_rows('train'):,} training rows of {self.config.seq_len:,} tokens"
                f"{'; ' + self.skipped if self.skipped else ''}")

    def train_batches(self, process_index: int = 0, process_count: int = 1,
                      start_row: int = 0) -> pipeline.TrainBatches:
        """Returns the endless training batches of one host, from global row `start_row` on.

        Args:
          process_index: this host, from 0.
          process_count: number of hosts.
          start_row: the `next_row` of a saved state; 0 starts anew.

        Raises:
          ValueError: data.batch_size is not divisible by `process_count`, or a number is out of range.
        """
        return pipeline.TrainBatches(
            self.rows["train"], batch_size=self.config.batch_size, seed=self.config.seed, process_index=process_index,
            process_count=process_count, start_row=start_row, num_workers=self.config.num_workers)

    def validation_batches(self, process_index: int = 0, process_count: int = 1) -> pipeline.ValidationBatches:
        """Returns one host's validation batches, at most data.validation_batches, the same rows at every pass.

        Args:
          process_index: this host, from 0.
          process_count: number of hosts.

        Raises:
          ValueError: data.batch_size is not divisible by `process_count`, or a number is out of range.
        """
        return pipeline.validation_batches(
            self.rows["validation"], batch_size=self.config.batch_size, seed=self.config.seed,
            max_batches=self.config.validation_batches, process_index=process_index, process_count=process_count)


def open_corpus(config: DataConfig) -> Corpus:
    """Reads, tokenizes, splits and indexes the documents that the config names.

    Documents that are empty or no UTF-8 text are skipped; the summary counts them, a warning those that are no text.

    Args:
      config: the data section of a run's config.

    Returns:
      The corpus, in memory.

    Raises:
      ValueError: unknown source or tokenizer, a path that names nothing, a document that cannot be read, or a corpus
        that cannot be trained on; names the field, its value and the remedy.
    """
    tokenizer = build_tokenizer(config)
    documents = sorted(read_documents(config), key=lambda document: document.name)
    where = f"data.path={config.path!r}" if config.path else f"data.source={config.source!r}"
    digest = hashlib.sha256(tokenizer.hash.encode())
    kept: dict[str, tuple[Document, np.ndarray]] = {}
    empty, not_text = [], []
    with futures.ThreadPoolExecutor(READ_THREADS) as executor:
        for document, data in zip(documents, executor.map(lambda document: _read(document, where), documents)):
            if document.name in kept:
                raise ValueError(f"{where} yields two documents named {document.name!r}: names must differ.")
            if not data:
                empty.append(document.name)
            elif not _is_text(data):
                not_text.append(document.name)
            else:
                for part in (document.name.encode("utf-8", "surrogateescape"), data):
                    digest.update(len(part).to_bytes(8, "big"))  # framed: names and contents cannot trade bytes
                    digest.update(part)
                kept[document.name] = document, tokenizer.encode(data)
    skipped = ", ".join(f"{len(names):,} {what} skipped (such as {names[0]})" for names, what in
                        ((not_text, "not UTF-8 text"), (empty, "empty")) if names)
    if not_text:
        logging.warning("%s: %s", where, skipped)
    groups = {document.group for document, _ in kept.values()}
    if max((len(ids) for _, ids in kept.values()), default=0) < 2:
        raise ValueError(f"{where} holds no document longer than one token ({len(kept)} documents"
                         f"{'; ' + skipped if skipped else ''}): nothing can be predicted from it; name a corpus of "
                         "UTF-8 text.")
    if len(groups) < 2:
        raise ValueError(f"{where} holds one file of text only ({next(iter(groups))}"
                         f"{'; ' + skipped if skipped else ''}), but two are needed, one to train on and one to hold "
                         "out: add a file, or cut this one in two.")
    split = dict(zip(SPLITS, split_groups(sorted(groups), fraction=config.validation_fraction, seed=config.seed)))
    order = shuffled_names(kept, seed=config.seed, purpose="documents")
    rows = {name: build_rows([kept[key][1] for key in order if kept[key][0].group in members],
                             bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
                             seq_len=config.seq_len, dtype=np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
            for name, members in split.items()}
    if len(rows["train"]) < config.batch_size:
        logging.warning("%s gives %d training rows of data.seq_len=%d, fewer than data.batch_size=%d: a batch repeats "
                        "rows. A smaller data.seq_len or data.batch_size, or more text, avoids it.", where,
                        len(rows["train"]), config.seq_len, config.batch_size)
    return Corpus(config=config, tokenizer=tokenizer, hash=digest.hexdigest(), rows=rows, groups=split, skipped=skipped)


def _read(document: Document, where: str) -> bytes:
    """Returns the bytes of a document.

    Raises:
      ValueError: it cannot be read; names the field, the document and the remedy.
    """
    try:
        return document.read()
    except OSError as error:
        raise ValueError(f"{where}: {document.name} cannot be read ({error.strerror or error}): make it readable for "
                         "this user, move it out of the corpus, or name a glob that leaves it out.") from error


def _is_text(data: bytes) -> bool:
    """Tells whether the bytes are UTF-8 text; a zero byte marks a binary file."""
    if b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
