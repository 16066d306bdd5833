"""The format `hf_parallel`: all heads, for Hugging Face transformers with a model class of ours beside the weights.

AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True) runs it; see remote_code/modeling_mtp_parallel.py.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from mtp_jax.config import ConvertConfig, ModelConfig, check_choice
from mtp_jax.convert import head_one, hf_card, hf_config, tokenizer_files
from mtp_jax.convert.model import Index, Model
from mtp_jax.convert.safetensors_file import open_folder
from mtp_jax.convert.table import (
    LLAMA,
    Entry,
    block_entries,
    check_covered,
    embedding_entry,
    leaves_of,
    reader,
    stored_dtype,
    unembedding_entry,
    write_safetensors,
)
from mtp_jax.convert.transforms import Linear
from mtp_jax.model import num_trunk_layers
from mtp_jax.model.heads import get_head_kind

HEAD_KINDS = ("parallel", "causal", "anticausal", "linear", "medusa")
ARCHITECTURE, MODEL_TYPE = "MTPParallelForCausalLM", "mtp_parallel"
CODE = pathlib.Path(__file__).parent / "remote_code" / "modeling_mtp_parallel.py"
# Facts of a run's model that change nothing in what it computes there; kept so that it comes back as it was.
_FACTS = ("extra_trunk_layers", "vocab_multiple", "d_ff_multiple", "dtype")


def table(config: ModelConfig) -> list[Entry]:
    """Returns the table of the format: Llama's names, with the heads as model.heads.{k} from 0."""
    lines = [embedding_entry(config, "model.embed_tokens.weight")]
    for i in range(num_trunk_layers(config)):
        lines += block_entries(config, LLAMA, prefix=f"model.layers.{i}.", path="trunk", index=i)
    kind = get_head_kind(config.head_kind)
    for k in range(config.num_heads - kind.first_own + 1):
        prefix = f"model.heads.{k}."
        if config.head_kind == "linear":
            lines.append(Entry(prefix + "weight", "heads/kernel", (k,), Linear()))
        elif config.head_kind == "medusa":
            lines += [Entry(f"{prefix}layers.{i}.weight", "heads/kernel", (k, i), Linear())
                      for i in range(config.medusa_layers)]
        else:
            lines += block_entries(config, LLAMA, prefix=prefix, path="heads", index=k)
    lines.append(Entry("model.norm.weight", "final_norm/scale"))
    if config.unembedding == "shared":
        return lines + unembedding_entry(config, "lm_head.weight")
    for k in range(config.num_heads):
        lines += unembedding_entry(config, f"lm_heads.{k}.weight", k + 1)
    return lines


def write(model: Model, folder: pathlib.Path, options: ConvertConfig) -> list[str]:
    """Writes weights, configs, the model class, the tokenizer and a card; returns the lines of Python that run it.

    Raises:
      ValueError: the head kind cannot be cut to fewer heads, or a number is NaN or infinite.
    """
    config = _first(model.config, options.heads or model.config.num_heads)
    entries = table(config)
    check_covered(model.leaves, entries, lambda path, index: _is_further(config, path, index))
    dtype = write_safetensors(model, entries, folder, options)
    hf_config.dump(folder / hf_config.CONFIG, to_fields(model, config, dtype))
    hf_config.dump(folder / "generation_config.json", hf_config.special_ids(model))
    (folder / CODE.name).write_bytes(CODE.read_bytes())
    has_tokenizer = tokenizer_files.write(model, folder)
    text = hf_card.card(model, config, options, dtype, has_tokenizer,
                        loaded="all of it, with the model class in this folder (modeling_mtp_parallel.py)",
                        running=_running(config.num_heads, has_tokenizer))
    (folder / "README.md").write_text(text, encoding="utf-8")
    return python_lines(options.dst, config.num_heads, has_tokenizer)


def python_lines(place: str, heads: int, has_tokenizer: bool) -> list[str]:
    """Returns the lines of Python that run an exported model."""
    model = f"model = AutoModelForCausalLM.from_pretrained({place!r}, trust_remote_code=True)"
    drafts = f", heads={heads}" if heads > 1 else ""
    if not has_tokenizer:
        return ["from transformers import AutoModelForCausalLM", model,
                f"print(model.generate(ids, max_new_tokens=64{drafts}))"]
    return ["from transformers import AutoModelForCausalLM, AutoTokenizer", model,
            f"tokenizer = AutoTokenizer.from_pretrained({place!r}, trust_remote_code=True)",  # it reads config.json
            'ids = tokenizer("def ", return_tensors="pt")',
            f"print(tokenizer.decode(model.generate(**ids, max_new_tokens=64{drafts})[0], skip_special_tokens=True))"]


def to_fields(model: Model, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Returns what config.json says: Llama's fields, and the heads.

    Args:
      model: for its window and its tokenizer.
      config: its shape, with the heads that are written.
      dtype: of the weights.
    """
    own_layers = get_head_kind(config.head_kind).layers_per_head * config.num_heads
    return {
        **hf_config.to_fields(model, dataclasses.replace(config, qk_norm=False), dtype),
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "auto_map": {"AutoConfig": f"{CODE.stem}.MTPParallelConfig", "AutoModelForCausalLM": f"{CODE.stem}."
                     + ARCHITECTURE},
        "num_hidden_layers": num_trunk_layers(config) + own_layers,
        "tie_word_embeddings": config.tie_embedding,
        "num_prediction_heads": config.num_heads,
        "head_kind": config.head_kind,
        "medusa_layers": config.medusa_layers,
        "replicated_unembedding": config.unembedding == "replicated",
        "qk_norm": config.qk_norm,
        "mtp_jax": {name: getattr(config, name) for name in _FACTS},
    }


def read(path: pathlib.Path, options: ConvertConfig) -> Model:
    """Opens what `write` wrote.

    Raises:
      ValueError: config.json is missing, damaged, of another model or of one that cannot be; tensors are missing, too
        many, misshapen or damaged; or the tokenizer cannot be read.
    """
    fields = hf_config.read_fields(path)
    tensors = open_folder(path)
    config, window = from_fields(fields, str(path / hf_config.CONFIG), dtype=stored_dtype(tensors))
    leaves = leaves_of(config, tensors)
    tokenizer, files = tokenizer_files.read(path, options.tokenizer)
    if tokenizer is not None:
        tokenizer_files.check_ids(tokenizer, config, options.tokenizer or path)
    return Model(config, leaves, reader(leaves, table(config), tensors), window, tokenizer, files,
                 {"source": str(path)})


def from_fields(fields: Mapping[str, Any], place: str, *, dtype: str) -> tuple[ModelConfig, int]:
    """Returns a model's shape and its window.

    Args:
      fields: of config.json.
      place: the file, for messages.
      dtype: of the weights, as we keep them.

    Raises:
      ValueError: it is of another model, lacks a field, or asks for what there is not here.
    """
    if fields.get("model_type") != MODEL_TYPE:
        remedy = ": read it with --src_format=hf" * (fields.get("model_type") in ("llama", "mistral", "qwen3"))
        raise ValueError(f"{place}: model_type is {fields.get('model_type')!r}, and that of hf_parallel is "
                         f"{MODEL_TYPE!r}{remedy}.")
    kinds = {"num_prediction_heads": int, "head_kind": str, "medusa_layers": int, "replicated_unembedding": bool,
             "qk_norm": bool}
    for name, kind in kinds.items():
        if type(fields.get(name)) is not kind:
            raise ValueError(f"{place}: {name} is {fields.get(name)!r} and must be of the type {kind.__name__}: "
                             "restore the file.")
    check_choice(f"{place}: head_kind", fields["head_kind"], HEAD_KINDS)
    like = "Qwen3ForCausalLM" if fields["qk_norm"] else "LlamaForCausalLM"
    plain, window = hf_config.from_fields({**fields, "architectures": [like], "layer_types": None}, place,
                                          head_kind="medusa", dtype=dtype)  # of one head: all layers are the trunk's
    facts = fields.get("mtp_jax") or {}
    if not isinstance(facts, dict) or set(facts) - set(_FACTS):
        raise ValueError(f"{place}: mtp_jax is {facts!r}, and what it may tell is {', '.join(_FACTS)}: restore the "
                         "file.")
    try:
        config = dataclasses.replace(
            plain, num_heads=fields["num_prediction_heads"], head_kind=fields["head_kind"],
            num_layers=plain.num_layers - int(facts.get("extra_trunk_layers", 0)),
            medusa_layers=fields["medusa_layers"],
            unembedding="replicated" if fields["replicated_unembedding"] else "shared", **facts)
        config.validate()
        get_head_kind(config.head_kind).check(config)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place} tells of a model that cannot be: {error}") from error
    return config, window


def _running(heads: int, has_tokenizer: bool) -> str:
    """Returns the card's part on how the model is run."""
    text = ["## Running it", "", "In this folder, by transformers 4.57 or 5:", "", "```python",
            *python_lines(".", heads, has_tokenizer), "```", "",
            "`trust_remote_code=True` runs modeling_mtp_parallel.py of this folder; read it first."]
    if heads > 1:
        text += ["", f"With `heads={heads}` the further heads draft and head 1 verifies: the text is that of head 1 "
                 "alone (to rounding), in fewer forwards. Without it, head 1 writes a token a forward. "
                 "`model.generate_speculative` also tells how many forwards it took; "
                 "`model(ids, output_all_heads=True).logits` are the logits of all heads, [B, L, N, V]."]
    text += ["", "In mtp_jax, as a run's folder:", "", "```sh", "python -m mtp_jax.convert --src=. "
             "--src_format=hf_parallel --dst=RUN --dst_format=workdir",
             "python -m mtp_jax.generate --workdir=RUN --prompt=TEXT", "```"]
    return "\n".join(text)


def _first(config: ModelConfig, heads: int) -> ModelConfig:
    """Returns the shape of the trunk and the first heads alone."""
    if config.head_kind == "anticausal" and heads < config.num_heads:
        raise ValueError(f"--heads={heads} of {config.num_heads} cannot be had with heads of the kind 'anticausal', "
                         "for head 1 stacks on all others: leave out --heads.")
    return head_one.first_heads(config, heads)


def _is_further(config: ModelConfig, path: str, index: Index) -> bool:
    """Tells whether an array of the whole model serves only heads that are not written."""
    first_own = get_head_kind(config.head_kind).first_own if path.startswith("heads/") else 1
    stacked = path.startswith("heads/") or (path == "unembedding/kernel" and config.unembedding == "replicated")
    return stacked and bool(index) and index[0] + first_own > config.num_heads
