"""What a prepared corpus is: names and layout of its files, and the manifest that says what is in them.

A folder holds, for each split, the split's token stream cut into shards, and an index of where documents begin:

    manifest.json                       written last: a folder without it is not finished
    train-00003-of-00016.array_record   records of `RECORD_TOKENS` ids (the shard's last may be shorter), little-endian
    train.index                         int64: the bounds of documents in the stream [documents + 1], then every
                                        `INDEX_STEP`-th of them again, which is the part that stays in memory
    validation-..., validation.index    the same for what is held out
    tokenizer.json, tokenizer.model     a copy of the tokenizer's file, if it has one
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from mtp_jax.data.reading import Skipped

FORMAT = 1  # of the folder
MANIFEST = "manifest.json"
RECORD_TOKENS = 16_384  # ids a record: few enough to read one for a row, and enough that a record costs little
INDEX_STEP = 512  # bounds between two that stay in memory


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """One file of a split's stream.

    Attributes:
      file: its name.
      documents: in it.
      tokens: BOS and EOS included.
      records: of `RECORD_TOKENS` tokens, the last one of what is left.
      size: of the file, bytes.
      sha256: of the tokens and the documents' lengths, whatever file holds them.
    """

    file: str
    documents: int
    tokens: int
    records: int
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class SplitFiles:
    """One split.

    Attributes:
      index: name of the file of bounds.
      groups: what the split kept together: files, or documents.
      documents: of all shards.
      tokens: of all shards.
      bytes: of text; of ids, where the source gave ids.
      shards: in the order of the stream.
    """

    index: str
    groups: int
    documents: int
    tokens: int
    bytes: int
    shards: tuple[ShardFile, ...]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
      format: `FORMAT` of the writer.
      version: of mtp_jax that wrote it.
      hash: hex sha256 over the tokenizer's hash and the content of all shards.
      documents: of both splits.
      tokens: of both splits.
      bytes: of both splits.
      dtype: of ids, "uint16" or "uint32".
      tokenizer: {"name", "file" (in this folder; "" for none), "hash", "vocab_size", "bos_id", "eos_id", "pad_id"}.
      settings: all that decided the output, as `prepare.plan` lists it.
      skipped: {reason: documents left out for it}.
      skipped_example: {reason: name of one}.
      splits: {"train", "validation"}.
    """

    format: int
    version: str
    hash: str
    documents: int
    tokens: int
    bytes: int
    dtype: str
    tokenizer: dict[str, Any]
    settings: dict[str, Any]
    skipped: dict[str, int]
    skipped_example: dict[str, str]
    splits: dict[str, SplitFiles]

    @property
    def left_out(self) -> str:
        """What was skipped, in words; "" for nothing."""
        return str(Skipped(self.skipped, self.skipped_example))

    def to_json(self) -> str:
        """Returns the text of manifest.json."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def read_manifest(folder: Any) -> Manifest | None:
    """Returns the manifest of a folder, or None where there is none.

    Args:
      folder: an epath.Path.

    Raises:
      ValueError: it is of another format, or no manifest.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"{path} has format {content['format']}, and this mtp_jax reads {FORMAT}: prepare the "
                             f"corpus anew, or use the version that wrote it ({content.get('version')}).")
        splits = {name: SplitFiles(**{**split, "shards": tuple(ShardFile(**shard) for shard in split["shards"])})
                  for name, split in content["splits"].items()}
        return Manifest(**{**content, "splits": splits})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the manifest of a prepared corpus ({type(error).__name__}: {error}): prepare "
                         "the corpus anew, or name its folder.") from error


def index_size(documents: int) -> int:
    """Returns the size in bytes of the index of so many documents."""
    return 8 * (documents + 1 + documents // INDEX_STEP + 1)
