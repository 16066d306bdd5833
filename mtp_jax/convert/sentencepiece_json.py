"""A SentencePiece model as a tokenizer.json: transformers 5 splits text otherwise than SentencePiece when it is given a
tokenizer.model (spaces at the start, the model's own normalisation)."""

from __future__ import annotations

import base64
from typing import Any

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # kinds of pieces
_SPACE = "\u2581"


def to_fields(data: bytes) -> dict[str, Any]:
    """Returns the object of tokenizer.json, without a post-processor, for the content of a .model file."""
    from sentencepiece import sentencepiece_model_pb2

    protos: Any = sentencepiece_model_pb2
    proto = protos.ModelProto.FromString(data)
    pieces, rules, trainer = proto.pieces, proto.normalizer_spec, proto.trainer_spec
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": index, "content": piece.piece, **plain, "special": piece.type != _USER_DEFINED}
             for index, piece in enumerate(pieces) if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if rules.add_dummy_prefix else []
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(rules)}, "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, *strip]},
        "model": _unigram(pieces, trainer) if trainer.model_type == 1 else _bpe(pieces, trainer)}


def _normalizers(rules: Any) -> list[dict[str, Any]]:
    """Returns what SentencePiece does to a text first, in its order."""
    steps: list[dict[str, Any]] = []
    if rules.precompiled_charsmap:
        steps.append({"type": "Precompiled",
                      "precompiled_charsmap": base64.b64encode(rules.precompiled_charsmap).decode()})
    if rules.remove_extra_whitespaces:
        steps += [{"type": "Replace", "pattern": {"Regex": "^ +| +$"}, "content": ""},
                  {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]
    if rules.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": _SPACE})
    return [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]


def _bpe(pieces: Any, trainer: Any) -> dict[str, Any]:
    """Returns the model of pieces that are merged in the order of their scores."""
    vocab = {piece.piece: index for index, piece in enumerate(pieces)}
    scores = {piece.piece: piece.score for piece in pieces if piece.type == _NORMAL}
    merges = []
    for piece, score in scores.items():
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if {piece[:i], piece[i:]} <= scores.keys()]
        merges += [(-score, vocab[left], vocab[right], left, right) for left, right in cuts]
    return {"type": "BPE", "dropout": None, "unk_token": pieces[trainer.unk_id].piece, "fuse_unk": True,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": trainer.byte_fallback,
            "ignore_merges": False, "vocab": vocab, "merges": [[left, right] for *_, left, right in sorted(merges)]}


def _unigram(pieces: Any, trainer: Any) -> dict[str, Any]:
    """Returns the model of pieces that are chosen for the largest sum of scores."""
    return {"type": "Unigram", "unk_id": trainer.unk_id, "byte_fallback": trainer.byte_fallback,
            "vocab": [[piece.piece, piece.score] for piece in pieces]}
