"""A tokenizer as files that Hugging Face's AutoTokenizer reads, with BOS before each text as our rows and prompts have.

    tokenizer.json or tokenizer.model   the tokenizer
    tokenizer_config.json               its special tokens, and that BOS comes first
    special_tokens_map.json             the same, for older readers
    tokenizer_test.json                 texts and the ids that they have here, to check any reader with
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from mtp_jax.convert.hf_config import dump
from mtp_jax.convert.model import Model
from mtp_jax.data.tokenizer import ByteTokenizer, Tokenizer

JSON, SENTENCEPIECE, CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
_KINDS = ("bos", "eos", "pad")
# Texts of tokenizer_test.json: code, prose, several scripts, characters of two to four bytes, control characters.
TEXTS = ("def add(a, b):\n    return a + b\n", "Once upon a time there was a miller.", "  two  spaces\tand a tab\r\n",
         "naïve café, Größe, 日本語, Ελληνικά, 🙂👩‍👩‍👧", "\x00\x01\x1b\x7f\x85\u200b\ufeff", "")


def write(model: Model, folder: pathlib.Path) -> bool:
    """Writes the files; returns whether there is a tokenizer to write."""
    tokenizer = model.tokenizer
    if tokenizer is None or not (model.tokenizer_files or isinstance(tokenizer, ByteTokenizer)):
        logging.warning("The model comes without tokenizer files: %s.", "its source has none" if tokenizer is None else
                        f"{type(tokenizer).__name__} is none of a kind that can be written")
        return False
    given: dict[str, Any] = {}
    if SENTENCEPIECE in model.tokenizer_files:
        (folder / SENTENCEPIECE).write_bytes(model.tokenizer_files[SENTENCEPIECE])
        tokens, own = _pieces(model.tokenizer_files[SENTENCEPIECE], tokenizer), {"tokenizer_class": "LlamaTokenizer"}
    else:
        given = json.loads(model.tokenizer_files.get(CONFIG, b"{}"))
        data = model.tokenizer_files.get(JSON)
        fields = byte_fields() if data is None else json.loads(data)
        tokens = _tokens(fields, tokenizer)
        own = {"tokenizer_class": "PreTrainedTokenizerFast"}  # reads tokenizer.json as it is, in versions 4 and 5
        if data is not None and _begins_with_bos(data, tokenizer):
            (folder / JSON).write_bytes(data)
        else:
            fields["post_processor"] = _bos_first(fields.get("post_processor"), tokens["bos_token"], tokenizer.bos_id)
            dump(folder / JSON, fields)
    for name in ("auto_map", "add_eos_token", "model_input_names"):
        given.pop(name, None)
    dump(folder / CONFIG, {
        **given, **own, **tokens, "add_bos_token": True, "model_max_length": model.window,
        "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]})
    dump(folder / "special_tokens_map.json", tokens)
    dump(folder / "tokenizer_test.json", {"texts": [
        {"text": text, "ids": [tokenizer.bos_id, *(int(index) for index in tokenizer.encode(text))]}
        for text in TEXTS]})
    return True


def read(folder: pathlib.Path, name: str) -> tuple[Tokenizer | None, dict[str, bytes]]:
    """Returns the tokenizer of a folder with its files; None where there is none, no files for bytes.

    Args:
      folder: of the model.
      name: where the tokenizer lies instead; empty: in the folder.

    Raises:
      ValueError: it cannot be read.
    """
    from mtp_jax.data.tokenizer_files import read_tokenizer

    if name == "bytes":
        return ByteTokenizer(), {}
    path = pathlib.Path(name).expanduser() if name else folder
    places = [path / file for file in (JSON, SENTENCEPIECE)] if path.is_dir() else [path]
    found = next((place for place in places if place.exists()), None)
    if found is None and not name:
        return None, {}
    if found is not None and found.suffix == ".json" and _is_bytes(found.read_bytes()):
        return ByteTokenizer(), {}
    try:
        tokenizer = read_tokenizer(str(found or path))
    except ValueError as error:
        raise ValueError(str(error).replace("data.tokenizer=", "tokenizer=", 1) + ("" if name else (
            " Where another file is the model's tokenizer, name it: --tokenizer=FILE."))) from error
    assert found is not None  # or it would not have been read
    files = {JSON if found.suffix == ".json" else SENTENCEPIECE: found.read_bytes()}
    if JSON in files and (found.parent / CONFIG).exists():
        files[CONFIG] = (found.parent / CONFIG).read_bytes()
    return tokenizer, files


def byte_fields() -> dict[str, Any]:
    """Returns the tokenizer.json of bytes, as an object: ids 0-255, then BOS, EOS and PAD; no merges."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ids = (ByteTokenizer.bos_id, ByteTokenizer.eos_id, ByteTokenizer.pad_id)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": index, "content": f"<|{kind}|>", **special} for kind, index in zip(_KINDS, ids)],
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {symbol: byte for byte, symbol in enumerate(_byte_symbols())}, "merges": []}}


def _byte_symbols() -> list[str]:
    """Returns the character that stands for each byte in ByteLevel: itself if it is seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def _is_bytes(data: bytes) -> bool:
    """Tells whether a tokenizer.json is the one of bytes."""
    try:
        fields, own = json.loads(data), byte_fields()
        return (fields["model"]["vocab"] == own["model"]["vocab"] and not fields["model"]["merges"]
                and [(token["id"], token["content"]) for token in fields["added_tokens"]]
                == [(token["id"], token["content"]) for token in own["added_tokens"]])
    except (ValueError, KeyError, TypeError):
        return False  # what is wrong with it, its reader tells


def _tokens(fields: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, str]:
    """Returns {"bos_token": ...} of a tokenizer.json."""
    from tokenizers import Tokenizer as Reader

    reader = Reader.from_str(json.dumps(fields))
    return {f"{kind}_token": str(reader.id_to_token(getattr(tokenizer, f"{kind}_id"))) for kind in _KINDS}


def _pieces(data: bytes, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns {"bos_token": ...} of a SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(data)
    return {f"{kind}_token": processor.id_to_piece(getattr(tokenizer, f"{kind}_id")) for kind in _KINDS}


def _begins_with_bos(data: bytes, tokenizer: Tokenizer) -> bool:
    """Tells whether a tokenizer.json puts BOS, and nothing else, around a text by itself."""
    from tokenizers import Tokenizer as Reader

    reader, text = Reader.from_buffer(data), TEXTS[1]
    reader.no_truncation()
    reader.no_padding()
    return reader.encode(text).ids == [tokenizer.bos_id, *tokenizer.encode(text).tolist()]


def _bos_first(before: Mapping[str, Any] | None, token: str, index: int) -> dict[str, Any]:
    """Returns a post-processor that puts BOS before a text; one that only moves offsets is kept before it."""
    special, template = {"SpecialToken": {"id": token, "type_id": 0}}, {"type": "TemplateProcessing"}
    parts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    own: dict[str, Any] = {**template, "single": [special, parts[0]], "pair": [special, parts[0], special, parts[1]],
                           "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}}}
    if before is not None and before.get("type") == "ByteLevel":
        return {"type": "Sequence", "processors": [dict(before), own]}
    return own
