"""The format `hf`: a plain LlamaForCausalLM of Hugging Face, which is our trunk and head 1; Qwen3ForCausalLM, which is
the same with norms on queries and keys, where the model has those.

The further heads lie beside it in mtp_heads.safetensors, which no other tool looks at, so that reading the folder gives
the whole model again. Their names, with k the number of a head:

    heads.k.<names of a Llama layer>                        parallel, causal (k from 2)
    heads.k.{enorm,hnorm,eh_proj,shared_head.norm}.weight   sequential (k from 2), and the names of a Llama layer;
                                                            these are DeepSeek's, embedding half of eh_proj first
    heads.k.layers.j.weight                                 medusa (k from 2, j from 0)
    heads.k.weight                                          linear (k from 1: the plain model has head 1 multiplied in)
    heads.k.unembedding.weight                              where each head has its own (k from 2; linear from 1)
    unembedding.weight                                      linear, untied: as it was before head 1 was multiplied in

Anticausal heads are all in the plain model, whose last layers they are. The file's metadata "mtp_jax" says which kind
they are; it is written for two heads and more.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from absl import logging

from mtp_jax.config import ConvertConfig, ModelConfig, check_choice, from_dict
from mtp_jax.convert import head_one, hf_card, hf_config, hf_mtp, tokenizer_files
from mtp_jax.convert.model import Index, Model
from mtp_jax.convert.safetensors_file import Tensors, open_file, open_folder
from mtp_jax.convert.table import (
    LLAMA,
    Entry,
    block_entries,
    check_covered,
    leaves_of,
    reader,
    stored_dtype,
    write_safetensors,
)
from mtp_jax.convert.transforms import Folded, Linear, Vocabulary
from mtp_jax.model.heads import get_head_kind

HEAD_KINDS = head_one.HEAD_KINDS
HEADS = "mtp_heads.safetensors"
_HEAD = "lm_head.weight"
# Facts of a model that its config.json and its plain transformer do not tell.
_FACTS = ("num_heads", "num_layers", "extra_trunk_layers", "head_kind", "medusa_layers", "unembedding", "tie_embedding",
          "vocab_multiple", "d_ff_multiple", "dtype")


def table(config: ModelConfig) -> list[Entry]:
    """Returns the table of the plain model."""
    return head_one.entries(config, LLAMA, embedding="model.embed_tokens.weight", layer="model.layers.{}.",
                            norm="model.norm.weight", unembedding=_HEAD)


def heads_table(config: ModelConfig) -> list[Entry]:
    """Returns the table of mtp_heads.safetensors."""
    kind, N, lines = config.head_kind, config.num_heads, []
    for k in range(1 if kind == "linear" else 2, N + 1):
        prefix, row = f"heads.{k}.", k - get_head_kind(kind).first_own
        if kind == "linear":
            lines.append(Entry(prefix + "weight", "heads/kernel", (row,), Linear()))
        elif kind == "medusa":
            lines += [Entry(f"{prefix}layers.{j}.weight", "heads/kernel", (row, j), Linear())
                      for j in range(config.medusa_layers)]
        elif kind == "sequential":
            lines += hf_mtp.module(config, prefix, row)
        elif kind != "anticausal":
            lines += block_entries(config, LLAMA, prefix=prefix, path="heads", index=row)
        if config.unembedding == "replicated":
            lines.append(Entry(prefix + "unembedding.weight", "unembedding/kernel", (k - 1,), _vocabulary(config)))
    if kind == "linear" and config.unembedding == "shared" and not config.tie_embedding:
        lines.append(Entry("unembedding.weight", "unembedding/kernel", (), _vocabulary(config)))
    return lines


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes weights, configs, tokenizer and card; returns the lines of Python that run the model.

    Raises:
      ValueError: the head kind cannot be cut to fewer heads, or a number is NaN or infinite.
    """
    N = options.heads or model.config.num_heads
    config = _first(model.config, N)
    plain, further = table(config), heads_table(config) if N > 1 else []
    check_covered(model.leaves, plain + further, lambda path, index: _is_left_out(config, N, path, index))
    # vLLM and SGLang load every *.safetensors of a folder unless an index leaves some out, as it does with the heads.
    dtype = write_safetensors(model, plain, folder, options, index=N > 1)
    if N > 1:
        facts = {name: getattr(config, name) for name in _FACTS}
        write_safetensors(model, further, folder, options, name=HEADS, shard_bytes=2**62,
                          metadata={"mtp_jax": json.dumps(facts)})
    hf_config.write(model, config, dtype, folder)
    has_tokenizer = tokenizer_files.write(model, folder)
    lines = python_lines(options.dst) if has_tokenizer else python_lines(options.dst)[:2]
    (folder / "README.md").write_text(hf_card.card(model, config, options, dtype, has_tokenizer), encoding="utf-8")
    return lines


def python_lines(place: str) -> list[str]:
    """Returns the lines of Python that run an exported model."""
    return ["from transformers import AutoModelForCausalLM, AutoTokenizer",
            f"model, tokenizer = (c.from_pretrained({place!r}) for c in (AutoModelForCausalLM, AutoTokenizer))",
            'print(tokenizer.decode(model.generate(**tokenizer("def ", return_tensors="pt"), max_new_tokens=64)[0]))']


def read(path: pathlib.Path, options: ConvertConfig) -> Model:
    """Opens a plain model, whoever wrote it, and the further heads that lie beside it.

    Raises:
      ValueError: config.json is missing, damaged or of a model that cannot be read; tensors are missing, too many,
        misshapen or damaged; the tokenizer cannot be read.
    """
    fields, place = hf_config.read_fields(path), str(path / hf_config.CONFIG)
    tensors = open_folder(path)
    dtype = stored_dtype(tensors, lambda name: name.endswith("inv_freq"))
    facts = _read_facts(path)
    check_choice("--head_kind", options.head_kind, hf_config.PLAIN_KINDS)
    config, window = hf_config.from_fields(fields, place, head_kind=options.head_kind, dtype=dtype)
    if facts:
        config = _with_heads(config, facts, path)
        tensors = _joined(tensors, open_file(path / HEADS))
    shapes = leaves_of(config, tensors)
    entries = table(config)
    if facts:
        entries = [entry for entry in entries if not isinstance(entry.transform, Folded)] + heads_table(config)
    needless = {_HEAD} - {entry.name for entry in entries}  # tied, or multiplied by a linear head

    def ignored(name: str) -> bool:
        return name in needless or name.endswith("rotary_emb.inv_freq")

    read_leaf = reader(shapes, entries, tensors, ignored=ignored)
    tokenizer, files = tokenizer_files.read(path, options.tokenizer)
    if tokenizer is None:
        logging.warning("%s has no tokenizer: name one by --tokenizer=FILE, or what is made of the model cannot tell "
                        "text.", path)
    else:
        tokenizer_files.check_ids(tokenizer, config, options.tokenizer or path)
    return Model(config, shapes, read_leaf, window, tokenizer, files, {"source": str(path)})


def _vocabulary(config: ModelConfig) -> Vocabulary:
    return Vocabulary(rows=config.vocab_size or 0)


def _first(config: ModelConfig, heads: int) -> ModelConfig:
    """Returns the shape of the trunk and the first heads alone."""
    if config.head_kind == "anticausal" and 1 < heads < config.num_heads:
        raise ValueError(f"--heads={heads} of {config.num_heads} cannot be had with heads of the kind 'anticausal', "
                         "each of which stacks on all later ones: leave out --heads, or write head 1 alone.")
    if config.head_kind == "anticausal":
        return config
    return head_one.first_heads(config, heads)


def _is_left_out(config: ModelConfig, heads: int, path: str, index: Index) -> bool:
    """Tells whether an array of ours serves heads alone that are not among the first so many."""
    if heads == 1:
        return head_one.further_heads(config, path, index)
    kept = heads - get_head_kind(config.head_kind).first_own + 1
    rows = {"unembedding/kernel": heads}.get(path, kept if path.startswith("heads/") else None)
    return rows is not None and bool(index) and index[0] >= rows


def _read_facts(path: pathlib.Path) -> dict[str, Any]:
    """Returns what mtp_heads.safetensors says of its heads; nothing where there is no such file."""
    if not (path / HEADS).exists():
        return {}
    try:
        return dict(json.loads(open_file(path / HEADS).metadata["mtp_jax"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path / HEADS} does not say which heads it holds (metadata \"mtp_jax\": {error!r}): copy it "
                         "again, or move it away to read head 1 alone.") from error


def _with_heads(plain: ModelConfig, facts: dict[str, Any], path: pathlib.Path) -> ModelConfig:
    """Returns the shape of the whole model.

    Raises:
      ValueError: the heads are of another model than config.json.
    """
    known = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    config = from_dict({"model": {**known, **facts}}).model
    config.validate()
    for what, theirs, ours in (("num_hidden_layers", plain.num_layers, len(head_one.layers(config))),
                               ("tie_word_embeddings", plain.tie_embedding, head_one.ties(config))):
        if theirs != ours:
            raise ValueError(f"{path / HEADS} holds heads of a model whose {what} is {ours}, and {hf_config.CONFIG} "
                             f"says {theirs}: put the files of one export together, or move {HEADS} away to read head "
                             "1 alone.")
    return config


def _joined(one: Tensors, other: Tensors) -> Tensors:
    """Returns the tensors of a folder and of another file in it."""
    return dataclasses.replace(one, infos={**one.infos, **other.infos}, places={**one.places, **other.places})
