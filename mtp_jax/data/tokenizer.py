"""Tokenizers: text to ids and back, found by name or read from a file.

Here the byte tokenizer; `tokenizer_files` reads those of Hugging Face and SentencePiece. Another kind registers a
function with `register_tokenizer` and keeps the same interface. Tokenizers pickle, so that other processes can encode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from mtp_jax.config import DataConfig


class Tokenizer(Protocol):
    """What data, decoding and evaluation need of a tokenizer.

    Attributes:
      vocab_size: number of ids in use; every id is below it.
      bos_id: begins each document.
      eos_id: ends each document.
      pad_id: fills rows; in no target.
      takes_bytes: any byte string has ids; otherwise only UTF-8.
      hash: hex digest of everything that decides `encode`, the same on every machine.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    takes_bytes: bool
    hash: str

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids [tokens] of a text (bytes are taken as UTF-8), without BOS and EOS, as `ids_dtype`."""
        ...

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Returns the ids of each text, equal to those of `encode`; faster where the tokenizer has threads."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids, special ones dropped."""
        ...


TOKENIZERS: dict[str, Callable[[DataConfig], Tokenizer]] = {}


def register_tokenizer(name: str) -> Callable[[Callable[[DataConfig], Tokenizer]], Callable[[DataConfig], Tokenizer]]:
    """Makes a function from the `DataConfig` to a tokenizer available as `config.data.tokenizer=name`."""
    def register(build):
        TOKENIZERS[name] = build
        return build

    return register


def build_tokenizer(config: DataConfig) -> Tokenizer:
    """Returns the tokenizer that `config.tokenizer` names: a registered one, or else a file's.

    Raises:
      ValueError: it is neither, with the nearest known one named, or the file is no tokenizer.
    """
    if config.tokenizer in TOKENIZERS:
        return TOKENIZERS[config.tokenizer](config)
    from mtp_jax.data import tokenizer_files

    return tokenizer_files.read_tokenizer(config.tokenizer)


def ids_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """Returns the smallest dtype that ids are kept in, uint16 or uint32."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


class ByteTokenizer:
    """UTF-8 bytes as ids 0-255, then BOS 256, EOS 257, PAD 258."""

    vocab_size = 259
    bos_id = 256
    eos_id = 257
    pad_id = 258
    takes_bytes = True
    hash = hashlib.sha256(b"mtp_jax byte tokenizer: 0-255 bytes, 256 BOS, 257 EOS, 258 PAD").hexdigest()

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids [bytes] (uint16) of a text, without BOS and EOS."""
        data = text.encode("utf-8") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.uint16)

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Returns the ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids [tokens]; ids that are no bytes are dropped, broken UTF-8 becomes U+FFFD."""
        array = np.asarray(ids, np.int64).reshape(-1)
        return array[(array >= 0) & (array < 256)].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


@register_tokenizer("bytes")
def byte_tokenizer(config: DataConfig) -> ByteTokenizer:
    """Bytes: no vocabulary to train, none to lose."""
    del config
    return ByteTokenizer()
