"""Tokenizers that are read from a file: Hugging Face's tokenizer.json and SentencePiece's .model.

Both encode a text as it is: no special token is added (rows add BOS and EOS), nothing is cut or padded, whatever the
file says of that, and the same text always has the same ids (a dropout of merges stored in the file is switched off).
What a file's own normalisation drops, decoding cannot bring back: SentencePiece's default folds newlines and repeated
spaces into one space, which makes it unfit for code.

Time grows linearly with the length of a document. Memory does too: while it encodes one document, `tokenizers` takes
about 130 bytes for each byte of code, `sentencepiece` about 45.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtp_jax.config import nearest
from mtp_jax.data.sources.paths import comes_from_storage, is_remote, nearest_sibling, remedy
from mtp_jax.data.tokenizer import TOKENIZERS, Tokenizer, ids_dtype

# Looked for among the added tokens of a tokenizer.json, in this order, where no tokenizer_config.json names others.
WELL_KNOWN = {
    "bos": ("<|bos|>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "<s>", "[BOS]", "[CLS]"),
    "eos": ("<|eos|>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "</s>", "[EOS]", "[SEP]"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
}
KINDS = "a tokenizer.json of Hugging Face or a .model of SentencePiece"


def read_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer of a file, or of a folder that holds tokenizer.json or tokenizer.model.

    Args:
      name: the path, here or in a bucket; data.tokenizer.

    Raises:
      ValueError: there is no such file, it cannot be read, is of another kind, or names neither BOS nor EOS.
    """
    from etils import epath

    try:
        path = epath.Path(name).expanduser()
        if path.is_dir():
            found = [path / file for file in ("tokenizer.json", "tokenizer.model") if (path / file).exists()]
            if not found:
                raise ValueError("is a folder with neither tokenizer.json nor tokenizer.model in it: name the file, or "
                                 "another folder.")
            path = found[0]
        if path.suffix not in (".json", ".model"):
            raise ValueError(_unknown(name, path))
        if not path.exists():
            raise ValueError(f"does not exist.{nearest_sibling(path)} Set it to \"bytes\" or to the path of {KINDS}; "
                             "one of your corpus is made by: python -m mtp_jax.data.train_tokenizer --source=SOURCE "
                             f"--vocab_size=4096 --output={name}")
        if path.suffix == ".model":
            return SentencePieceTokenizer(path.read_bytes())
        beside = path.parent / "tokenizer_config.json"
        return HuggingFaceTokenizer(path.read_bytes(), _named(beside.read_bytes()) if beside.exists() else {})
    except ValueError as error:
        raise ValueError(f"data.tokenizer={name!r} {error}") from error
    except Exception as error:
        if not comes_from_storage(name, error):
            raise
        what = remedy(name, error) if is_remote(name) else "make it readable for this user"
        raise ValueError(f"data.tokenizer={name!r} cannot be read ({getattr(error, 'strerror', None) or error}): "
                         f"{what}.") from error


def text_of(data: str | bytes) -> str:
    """Returns UTF-8 bytes as text.

    Raises:
      ValueError: they are no UTF-8; names the offset of the first byte that is not.
    """
    try:
        return data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"this tokenizer takes UTF-8 only, and byte {error.start} (0x{error.object[error.start]:02x}) "
                         "of the text is none: convert the text, or use data.tokenizer='bytes'.") from error


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The ids that a file has for BOS, EOS and PAD, None for those that it lacks."""

    bos: int | None
    eos: int | None
    pad: int | None

    def completed(self, advice: str) -> tuple[int, int, int]:
        """Returns BOS, EOS and PAD, one of BOS and EOS standing in for the other, and EOS for PAD.

        Padding is no segment and in no target, so that an id with another use does no harm there.

        Raises:
          ValueError: there is neither BOS nor EOS.
        """
        eos = self.bos if self.eos is None else self.eos
        if eos is None:
            raise ValueError(f"has neither a BOS nor an EOS token, which separate documents: {advice}")
        return eos if self.bos is None else self.bos, eos, eos if self.pad is None else self.pad


class HuggingFaceTokenizer:
    """A tokenizer.json, run by `tokenizers`.

    Text that spells out a special token, such as "<|endoftext|>", is encoded like any other text and not as that
    token's id; a document cannot end itself. Only where the model itself has that text as one of its ordinary pieces
    does it get the id. Tokens that are added but not special are found in the text. A vocabulary without all bytes
    has no ids for characters that it does not know: they become its unknown token, or vanish where it has none.

    Threads: `encode_batch` uses all cores; TOKENIZERS_PARALLELISM=false in the environment makes it one.

    Attributes: see `Tokenizer`.
    """

    takes_bytes = False

    def __init__(self, data: bytes, named: Mapping[str, str] | None = None):
        """Reads the file.

        Args:
          data: its content.
          named: {"bos", "eos", "pad"} -> the token that a tokenizer_config.json gives; may lack any.

        Raises:
          ValueError: it is no tokenizer.json, or has neither BOS nor EOS.
        """
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Reader

        self._data, self._given = data, dict(named or {})
        try:
            self._tokenizer = Reader.from_buffer(data)
        except Exception as error:  # a ValueError or a bare Exception, by version
            raise ValueError(f"is no tokenizer.json that the library tokenizers can read ({error}): save one with "
                             "Tokenizer.save, or train one with python -m mtp_jax.data.train_tokenizer.") from error
        for token in json.loads(data).get("added_tokens") or ():
            index = self._tokenizer.token_to_id(token["content"])
            if index != token["id"]:
                raise ValueError(f"gives the added token {token['content']!r} the id {token['id']}, which the library "
                                 f"tokenizers reads as {index}: number added tokens without a gap behind the others.")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if getattr(self._tokenizer.model, "dropout", None) is not None:
            self._tokenizer.model.dropout = None
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_id, self.eos_id, self.pad_id = self._special().completed(
            'name one as "eos_token" in a tokenizer_config.json beside the file.')
        added = self._tokenizer.get_added_tokens_decoder()
        for index in {self.bos_id, self.eos_id, self.pad_id} & added.keys():
            if not added[index].special:
                self._tokenizer.add_special_tokens([AddedToken(added[index].content, special=True)])
        self._tokenizer.encode_special_tokens = True  # as text, that is
        self.hash = _hash(self, data)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._data, self._given)

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids [tokens] of a text, without BOS and EOS.

        Raises:
          ValueError: bytes that are no UTF-8.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """Returns the ids of each text.

        Raises:
          ValueError: bytes that are no UTF-8.
        """
        dtype = ids_dtype(self.vocab_size)
        found = self._tokenizer.encode_batch_fast([text_of(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, dtype) for encoding in found]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids [tokens]; special ones and those outside the vocabulary are dropped."""
        return self._tokenizer.decode(_plain_ids(self, ids), skip_special_tokens=True)

    def _special(self) -> SpecialIds:
        """Returns the special ids that tokenizer_config.json names; where it names none, those of well-known names.

        Raises:
          ValueError: a token that is named for BOS or EOS is not in the vocabulary.
        """
        added = {token.content: index for index, token in self._tokenizer.get_added_tokens_decoder().items()}
        for kind in ("bos", "eos"):
            token = self._given.get(kind)
            if token is not None and self._tokenizer.token_to_id(token) is None:
                raise ValueError(f'has no token {token!r}, which the tokenizer_config.json beside it gives as '
                                 f'"{kind}_token".{nearest(token, added)} Name one of its tokens there.')
        found = {kind: next((added[token] for token in tokens if token in added), None)
                 for kind, tokens in WELL_KNOWN.items()}
        if self._given.keys() & {"bos", "eos"}:  # what it leaves out is left out on purpose
            found.update(bos=None, eos=None)
        return SpecialIds(**found | {kind: self._tokenizer.token_to_id(token) for kind, token in self._given.items()})


class SentencePieceTokenizer:
    """A SentencePiece .model.

    Text that spells out a control symbol, such as "</s>", is encoded like any other text. Symbols that the model's
    maker defined as `user_defined_symbols` are found in the text. Threads: see `HuggingFaceTokenizer`.

    Attributes: see `Tokenizer`.
    """

    takes_bytes = False

    def __init__(self, data: bytes):
        """Reads the file.

        Args:
          data: its content.

        Raises:
          ValueError: it is no SentencePiece model, or has neither BOS nor EOS.
        """
        from sentencepiece import SentencePieceProcessor

        self._data = data
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(data)
        except Exception as error:  # a RuntimeError or an OSError, by version
            raise ValueError(f"is no SentencePiece model ({error}): where its maker also gives a tokenizer.json, name "
                             "that; a .model of tiktoken, such as Llama 3's, is another format.") from error
        self.vocab_size = self._processor.get_piece_size()
        self.bos_id, self.eos_id, self.pad_id = SpecialIds(*(None if index < 0 else index for index in (
            self._processor.bos_id(), self._processor.eos_id(), self._processor.pad_id()))).completed(
                "train the model with bos_id or eos_id at least 0.")
        self.hash = _hash(self, data)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._data,)

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids [tokens] of a text, without BOS and EOS.

        Raises:
          ValueError: bytes that are no UTF-8.
        """
        return np.array(self._processor.encode(text_of(text), out_type=int), ids_dtype(self.vocab_size))

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """Returns the ids of each text.

        Raises:
          ValueError: bytes that are no UTF-8.
        """
        one = os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "off", "no", "f", "n", "0")
        found = self._processor.encode([text_of(text) for text in texts], out_type=int, num_threads=1 if one else -1)
        return [np.array(ids, ids_dtype(self.vocab_size)) for ids in found]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids [tokens]; special ones and those outside the vocabulary are dropped."""
        return self._processor.decode([index for index in _plain_ids(self, ids)
                                       if not self._processor.is_control(index)])


def _hash(tokenizer: Tokenizer, data: bytes) -> str:
    """Returns the hex digest of a file and the special ids that were found for it."""
    special = f"{tokenizer.bos_id} {tokenizer.eos_id} {tokenizer.pad_id}"
    return hashlib.sha256(hashlib.sha256(data).digest() + special.encode()).hexdigest()


def _plain_ids(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> list[int]:
    """Returns the ids that are in the vocabulary and not BOS, EOS or PAD."""
    array = np.asarray(ids, np.int64).reshape(-1)
    special = np.isin(array, (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id))
    return array[(array >= 0) & (array < tokenizer.vocab_size) & ~special].tolist()


def _unknown(name: str, path: Any) -> str:
    """Returns what is wrong with a name that is neither registered nor the path of a known kind."""
    if path.exists():
        return f"is not {KINDS}: those end in .json and .model."
    near = nearest_sibling(path) if {"/", "."} & set(name) else nearest(name, TOKENIZERS)
    return f"is not one of {sorted(TOKENIZERS)}, and no file.{near} Set it to \"bytes\" or to the path of {KINDS}."


def _named(data: bytes) -> dict[str, str]:
    """Returns {"bos", "eos", "pad"} -> the token that a tokenizer_config.json gives, those that it lacks left out.

    Raises:
      ValueError: it is no JSON object, or a token is neither a string nor an object with its content.
    """
    try:
        fields = json.loads(data)
        tokens = {kind: fields.get(f"{kind}_token") for kind in WELL_KNOWN}
        given = {kind: token if isinstance(token, str) else token["content"] for kind, token in tokens.items() if token}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"has a tokenizer_config.json beside it that cannot be read ({error!r}): repair it, or move "
                         "it away.") from error
    return given
