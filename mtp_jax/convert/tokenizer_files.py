"""A tokenizer as files that Hugging Face's AutoTokenizer reads, with BOS before each text as our rows and prompts have.

    tokenizer.json            the tokenizer
    tokenizer.model           as well, where that is what it was read from
    tokenizer_config.json     its special tokens, and that BOS comes first
    special_tokens_map.json   the same, for older readers
    chat_template.jinja       as it was beside the tokenizer, if it was
    tokenizer_test.json       texts and the ids that they have here, to check any reader with
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from mtp_jax.config import ModelConfig
from mtp_jax.convert.hf_config import dump
from mtp_jax.convert.model import Model
from mtp_jax.convert.sentencepiece_json import to_fields
from mtp_jax.data.tokenizer import ByteTokenizer, Tokenizer

JSON, SENTENCEPIECE, CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
TEST, CHAT = "tokenizer_test.json", "chat_template.jinja"
BESIDE = (CONFIG, CHAT)  # what goes along with a tokenizer.json
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
    given = json.loads(model.tokenizer_files.get(CONFIG, b"{}"))
    data, pieces = model.tokenizer_files.get(JSON), model.tokenizer_files.get(SENTENCEPIECE)
    for name, content in ((SENTENCEPIECE, pieces), (CHAT, model.tokenizer_files.get(CHAT))):
        if content is not None:
            (folder / name).write_bytes(content)
    fields = json.loads(data) if data is not None else byte_fields() if pieces is None else to_fields(pieces)
    tokens = _tokens(fields, tokenizer)
    if data is None or not _begins_with_bos(data, tokenizer):
        fields["post_processor"] = _bos_first(fields.get("post_processor"), tokens["bos_token"], tokenizer.bos_id)
        dump(folder / JSON, fields)
    else:
        (folder / JSON).write_bytes(data)
    _check(folder / JSON, tokenizer)
    for name in ("auto_map", "add_eos_token", "model_input_names"):
        given.pop(name, None)
    dump(folder / CONFIG, {
        **given, **tokens, "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is, in versions 4 and 5
        "add_bos_token": True, "model_max_length": model.window,
        "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]})
    dump(folder / "special_tokens_map.json", tokens)
    dump(folder / TEST, {"texts": [{"text": text, "ids": _ids(tokenizer, text)} for text in TEXTS]})
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
    files = (SENTENCEPIECE, JSON) if (path / TEST).exists() else (JSON, SENTENCEPIECE)  # ours: the original first
    places = [path / file for file in files] if path.is_dir() else [path]
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
    found = found or path
    if found.suffix != ".json":
        return tokenizer, {SENTENCEPIECE: found.read_bytes()}
    beside = {file: found.parent / file for file in BESIDE}
    return tokenizer, {JSON: found.read_bytes(), **{file: place.read_bytes() for file, place in beside.items()
                                                    if place.exists()}}


def check_ids(tokenizer: Tokenizer, config: ModelConfig, place: str | pathlib.Path) -> None:
    """Raises ValueError where the tokenizer at `place` has ids that a model lacks."""
    if tokenizer.vocab_size > (config.vocab_size or 0):
        raise ValueError(f"{place} has a tokenizer of {tokenizer.vocab_size} ids, and the model has "
                         f"{config.vocab_size}: name its own by --tokenizer=FILE.")


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
    reader = _reader(json.dumps(fields).encode())
    return {f"{kind}_token": reader.id_to_token(getattr(tokenizer, f"{kind}_id")) for kind in _KINDS}


def _begins_with_bos(data: bytes, tokenizer: Tokenizer) -> bool:
    """Tells whether a tokenizer.json puts BOS, and nothing else, around a text by itself."""
    return _reader(data).encode(TEXTS[1]).ids == _ids(tokenizer, TEXTS[1])


def _check(path: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Warns where a tokenizer.json gives other ids than the tokenizer itself."""
    reader = _reader(path.read_bytes())
    wrong = [text for text in TEXTS if reader.encode(text).ids != _ids(tokenizer, text)]
    if wrong:
        logging.warning("tokenizer.json does not give quite the ids that the model was trained with, as of %r "
                        "(tokenizer_test.json has the right ones): make the ids with mtp_jax where that matters.",
                        wrong[0])


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Returns the ids of a text with BOS before it."""
    return [tokenizer.bos_id, *(int(index) for index in tokenizer.encode(text))]


def _reader(data: bytes) -> Any:
    """Returns the tokenizer of a tokenizer.json, as the library runs it."""
    from tokenizers import Tokenizer as Reader

    reader = Reader.from_buffer(data)
    reader.no_truncation()
    reader.no_padding()
    return reader


def _bos_first(before: Mapping[str, Any] | None, token: str, index: int) -> dict[str, Any]:
    """Returns a post-processor that puts BOS before a text; one that only moves offsets is kept before it."""
    special, template = {"SpecialToken": {"id": token, "type_id": 0}}, {"type": "TemplateProcessing"}
    parts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    own: dict[str, Any] = {**template, "single": [special, parts[0]], "pair": [special, parts[0], special, parts[1]],
                           "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}}}
    if before is not None and before.get("type") == "ByteLevel":
        return {"type": "Sequence", "processors": [dict(before), own]}
    return own
