"""Trains a byte-level BPE on the training documents of a corpus.

Byte-level: every one of the 256 bytes is in the vocabulary, so that any text has ids and comes back from them exactly.
Held-out documents are those of a run with the same source, filters, seed and fraction, be the corpus read or prepared;
the tokenizer never sees them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

from mtp_jax.config import DataConfig
from mtp_jax.data.reading import Skipped, content_bytes, find_pieces, prepared_threshold, read_both_paths, split_corpus
from mtp_jax.data.sources.base import where
from mtp_jax.data.split import is_held_out, shuffled_names
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.data.tokenizer_files import HuggingFaceTokenizer

SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")  # ids 0, 1 and 2
SMALLEST = 256 + len(SPECIAL)
MEASURED_BYTES = 20_000_000  # held-out text that the measurement reads, at most


@dataclasses.dataclass(frozen=True)
class Measured:
    """How a tokenizer does on texts.

    Attributes:
      num_bytes: of the texts.
      num_tokens: of the texts, without BOS and EOS.
      seconds: that encoding took.
    """

    num_bytes: int
    num_tokens: int
    seconds: float

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(self.num_tokens, 1)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / max(self.seconds, 1e-9)


@dataclasses.dataclass(frozen=True)
class TrainedTokenizer:
    """A byte-level BPE and what it was trained on.

    Attributes:
      data: the content of its tokenizer.json.
      tokenizer: the same, ready to encode.
      num_documents: {"train", "validation"} -> documents that it was trained on, and that were held out.
      num_bytes: {"train", "validation"} -> their bytes of text.
      skipped: documents that were left out, in words; "" for none.
      held_out: how it does on the held-out documents, on the first MEASURED_BYTES of them.
    """

    data: bytes
    tokenizer: Tokenizer
    num_documents: dict[str, int]
    num_bytes: dict[str, int]
    skipped: str
    held_out: Measured


def train_bpe(config: DataConfig, *, vocab_size: int, sample_bytes: int = 0,
              progress: bool = False) -> TrainedTokenizer:
    """Trains a tokenizer on the training documents of one source. The same documents give the same file, byte for byte.

    The corpus is read twice, once to split it and once to count, and is never in memory as a whole.

    Args:
      config: of one source; `tokenizer` is not read.
      vocab_size: ids in all, the bytes and the special tokens counted.
      sample_bytes: train on so many bytes of randomly drawn documents at most, but on one at least; 0: on all. Two
        cores take about a second for each 10 MB.
      progress: show progress bars.

    Raises:
      ValueError: the vocabulary is smaller than the bytes or larger than the text gives, or the corpus cannot be used.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST:
        raise ValueError(f"vocab_size={vocab_size} is below {SMALLEST}, for the 256 bytes and {', '.join(SPECIAL)} are "
                         "always in the vocabulary: raise it, or train on bytes with data.tokenizer='bytes'.")
    if sample_bytes < 0:
        raise ValueError(f"sample_bytes={sample_bytes} must be at least 0, which stands for all.")
    sizes, skipped = _sizes(config, progress)
    training, held = _split(sizes, config, skipped)
    training = _drawn(sizes, training, sample_bytes, config.seed)
    counts = {"train": 0, "validation": 0}
    num_bytes = {"train": 0, "validation": 0}
    measured: list[bytes] = []

    def texts() -> Iterator[str]:
        for group, text in _texts(config, Skipped()):
            if group not in training and group not in held:
                continue  # was not drawn
            split = "train" if group in training else "validation"
            counts[split] += 1
            num_bytes[split] += len(text)
            if split == "train":
                yield text.decode("utf-8")
            elif num_bytes[split] <= MEASURED_BYTES or not measured:
                measured.append(text)

    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL), show_progress=progress,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    made = model.get_vocab_size()
    if made < vocab_size:
        raise ValueError(f"vocab_size={vocab_size} is more than this text gives: {num_bytes['train']:,} bytes have "
                         f"{made - SMALLEST:,} merges of pairs that occur twice or more. Set vocab_size={made} or "
                         "less, or give more text.")
    data = model.to_str(pretty=True).encode()
    tokenizer = HuggingFaceTokenizer(data)
    return TrainedTokenizer(data=data, tokenizer=tokenizer, num_documents=counts, num_bytes=num_bytes,
                            skipped=str(skipped), held_out=measure(tokenizer, measured))


def measure(tokenizer: Tokenizer, texts: Sequence[bytes]) -> Measured:
    """Encodes texts, 64 at a time, and returns how many tokens they have and how long it took."""
    start = time.perf_counter()
    num_tokens = sum(len(ids) for first in range(0, len(texts), 64)
                     for ids in tokenizer.encode_batch(texts[first:first + 64]))
    return Measured(sum(map(len, texts)), num_tokens, time.perf_counter() - start)


def _sizes(config: DataConfig, progress: bool) -> tuple[dict[str, int], Skipped]:
    """Reads the corpus once; returns the bytes of each group, and what was left out.

    Raises:
      ValueError: it cannot be read, holds no text, or is tokenized already.
    """
    from tqdm import tqdm

    sizes: dict[str, int] = {}
    skipped = Skipped()
    for group, text in tqdm(_texts(config, skipped), desc="Reading", unit=" documents", disable=not progress):
        sizes[group] = sizes.get(group, 0) + len(text)
    if not sizes:
        raise ValueError(f"{where(config)} holds no text{f' ({skipped})' if skipped.count else ''}: name a corpus of "
                         "UTF-8 text.")
    return sizes, skipped


def _split(groups: Iterable[str], config: DataConfig, skipped: Skipped) -> tuple[frozenset[str], frozenset[str]]:
    """Returns (groups that a run trains on, whether it reads the corpus or a prepared one; groups held out by it)."""
    split = split_corpus(groups, config, skipped)
    if config.validation_path:
        return split["train"], split["validation"]
    threshold = prepared_threshold(find_pieces(config), config)
    training = {group for group in split["train"] if not is_held_out(group, threshold=threshold, seed=config.seed)}
    return frozenset(training) or split["train"], split["validation"]


def _drawn(sizes: dict[str, int], training: frozenset[str], sample_bytes: int, seed: int) -> frozenset[str]:
    """Returns the groups to train on: all that a run trains on, or random ones of them of `sample_bytes`."""
    if not sample_bytes:
        return training
    drawn: list[str] = []
    total = 0
    for group in shuffled_names(training, seed=seed, purpose="tokenizer"):
        if drawn and total + sizes[group] > sample_bytes:
            break
        drawn.append(group)
        total += sizes[group]
    return frozenset(drawn)


def _texts(config: DataConfig, skipped: Skipped) -> Iterator[tuple[str, bytes]]:
    """Yields the group and the text of each document, held-out ones too.

    Raises:
      ValueError: the corpus cannot be read, or is tokenized already.
    """
    for text in read_both_paths(config, skipped, takes_bytes=False):
        yield text.group, content_bytes(text.content)
