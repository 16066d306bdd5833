"""A tokenizer as llama.cpp reads it: a list of tokens with their types, and what splits text into them.

llama.cpp has its own code for each way of splitting, chosen by name; what it has no name for is refused, for its ids
would be others than those that the model was trained with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mtp_jax.convert.model import Model
from mtp_jax.data.tokenizer import ByteTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # gguf.TokenType, and SentencePiece's
_GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_LLAMA3 = (r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"""
           r"""\s*[\r\n]+|\s+(?!\S)|\s+""")
_QWEN2 = _LLAMA3.replace("{1,3}", "")
# (how text is split into words, whether a word that is a token as a whole stays one) -> llama.cpp's name
SPLITS = {(_GPT2, False): "gpt-2", (_LLAMA3, True): "llama-bpe", (_LLAMA3, False): "dbrx", (_QWEN2, False): "qwen2"}
_REMEDY = "Choose --dst_format=hf, or stablehlo, whose programs take ids."


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A tokenizer for llama.cpp.

    Attributes:
      model: llama.cpp's name of the algorithm: "gpt2" (byte-level BPE), "llama" (SentencePiece), "none".
      tokens: text of each id.
      types: of each.
      scores: of each, for SentencePiece.
      merges: pairs, the first ones first, for byte-level BPE.
      pre: name of the way in which text is split into words, likewise.
      special: {"bos", "eos", "pad", "unk"} -> id.
      space_prefix: a space is put before the text.
    """

    model: str
    tokens: list[str] = dataclasses.field(default_factory=list)
    types: list[int] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    merges: list[str] = dataclasses.field(default_factory=list)
    pre: str = ""
    special: Mapping[str, int] = dataclasses.field(default_factory=dict)
    space_prefix: bool = False

    def add(self, writer: Any) -> None:
        """Puts it into the header of a gguf.GGUFWriter."""
        writer.add_tokenizer_model(self.model)
        if not self.tokens:
            return
        if self.pre:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, index in self.special.items():
            getattr(writer, f"add_{name}_token_id")(index)
        writer.add_add_bos_token(True)  # every document that the model was trained on begins so
        writer.add_add_eos_token(False)
        writer.add_add_space_prefix(self.space_prefix)


def vocabulary(model: Model) -> Vocabulary:
    """Returns a model's tokenizer for llama.cpp; without one, prompts must be ids.

    Raises:
      ValueError: llama.cpp cannot tokenize so; says what it lacks.
    """
    tokenizer, size = model.tokenizer, model.config.vocab_size or 0
    if tokenizer is None:
        return Vocabulary("none")
    special = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    if isinstance(tokenizer, ByteTokenizer):
        found = _bytes(special)
    elif "tokenizer.json" in model.tokenizer_files:
        found = _byte_level(json.loads(model.tokenizer_files["tokenizer.json"]), special)
    elif "tokenizer.model" in model.tokenizer_files:
        found = _sentencepiece(model.tokenizer_files["tokenizer.model"], special)
    else:
        raise ValueError(f"--dst_format=gguf: a tokenizer of the kind {type(tokenizer).__name__} is not known to "
                         f"llama.cpp. {_REMEDY}")
    for index in special.values():
        found.types[index] = CONTROL
    spare = range(len(found.tokens), size)
    return dataclasses.replace(found, tokens=found.tokens + [f"[UNUSED{i}]" for i in spare],
                               types=found.types + [UNUSED for _ in spare],
                               scores=found.scores + [-10_000.0 for _ in spare] if found.scores else [])


def byte_names() -> list[str]:
    """Returns the character by which byte-level BPE writes each byte: itself where it is printable."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _bytes(special: Mapping[str, int]) -> Vocabulary:
    """Returns bytes as byte-level BPE that never merges.

    llama.cpp wants merges and gguf writes no empty list: the one here joins two names that no text splits into.
    """
    tokens = [*byte_names(), "<|bos|>", "<|eos|>", "<|pad|>"]
    return Vocabulary("gpt2", tokens, [NORMAL] * len(tokens), merges=["<|bos|> <|eos|>"], pre="gpt-2", special=special)


def _byte_level(file: Mapping[str, Any], special: Mapping[str, int]) -> Vocabulary:
    """Returns the byte-level BPE of a tokenizer.json."""
    rules = file["model"]
    if rules.get("type") != "BPE":
        raise ValueError(f"--dst_format=gguf: llama.cpp has no tokenizer.json of the type {rules.get('type')!r}, only "
                         f"byte-level BPE. {_REMEDY}")
    if file.get("normalizer"):
        raise ValueError(f"--dst_format=gguf: this tokenizer.json changes the text first "
                         f"({_kind(file['normalizer'])}), which llama.cpp does not. {_REMEDY}")
    split = _split(file.get("pre_tokenizer") or {}), bool(rules.get("ignore_merges"))
    if split not in SPLITS:
        raise ValueError(f"--dst_format=gguf: llama.cpp has no name for the way in which this tokenizer.json splits "
                         f"text, {json.dumps(file.get('pre_tokenizer'), ensure_ascii=False)} with ignore_merges="
                         f"{split[1]}. {_REMEDY}")
    tokens = {index: token for token, index in rules["vocab"].items()}
    types = dict.fromkeys(tokens, NORMAL)
    for token in file.get("added_tokens") or ():
        tokens[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    size = max(tokens) + 1
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in rules["merges"]]
    return Vocabulary("gpt2", [tokens.get(i, f"[UNUSED{i}]") for i in range(size)],
                      [types.get(i, UNUSED) for i in range(size)], merges=merges or ["<|bos|> <|eos|>"],
                      pre=SPLITS[split], special=special)


def _split(rule: Mapping[str, Any]) -> str:
    """Returns the regular expression that splits text; "" where it is not one alone."""
    parts = list(rule.get("pretokenizers") or [rule])
    last = parts.pop()
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        return ""
    if last.get("use_regex", True):
        return "" if parts else _GPT2
    if len(parts) != 1 or parts[0].get("type") != "Split" or parts[0].get("invert"):
        return ""
    return parts[0]["pattern"].get("Regex", "") if parts[0].get("behavior") == "Isolated" else ""


def _kind(part: Mapping[str, Any]) -> str:
    """Returns the type of a normalizer, those of a sequence joined."""
    return ", ".join(map(_kind, part.get("normalizers", ()))) or str(part.get("type"))


def _sentencepiece(data: bytes, special: Mapping[str, int]) -> Vocabulary:
    """Returns the pieces of a SentencePiece model."""
    from sentencepiece import sentencepiece_model_pb2

    protos: Any = sentencepiece_model_pb2
    proto = protos.ModelProto.FromString(data)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = {value: name for name, value in protos.TrainerSpec.ModelType.items()}
    lacks = {
        f"model_type={kinds[trainer.model_type].lower()} (bpe alone)": kinds[trainer.model_type] != "BPE",
        "byte_fallback=false": not trainer.byte_fallback,
        f"normalization_rule_name={normalizer.name}": bool(normalizer.precompiled_charsmap),
        "remove_extra_whitespaces=true": normalizer.remove_extra_whitespaces,
        "treat_whitespace_as_suffix=true": trainer.treat_whitespace_as_suffix,
        "escape_whitespaces=false": not normalizer.escape_whitespaces,
    }
    if any(lacks.values()):
        raise ValueError("--dst_format=gguf: llama.cpp splits text as a SentencePiece model of Llama's kind, and this "
                         f"one was trained with {', '.join(name for name, there in lacks.items() if there)}. {_REMEDY}")
    unknown = [index for index, piece in enumerate(proto.pieces) if piece.type == UNKNOWN]
    return Vocabulary("llama", [piece.piece for piece in proto.pieces], [piece.type for piece in proto.pieces],
                      [piece.score for piece in proto.pieces],
                      special={**special, **({"unk": unknown[0]} if unknown else {})},
                      space_prefix=normalizer.add_dummy_prefix)
