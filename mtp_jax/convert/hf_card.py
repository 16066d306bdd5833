"""README.md of an exported model: what it is, what it was trained on and how well it does, how it is run."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import mtp_jax
from mtp_jax.config import Config, ConvertConfig, ModelConfig, from_dict
from mtp_jax.convert.model import Model
from mtp_jax.training.progress import count

_KINDS = {
    "parallel": "each a transformer layer on the same trunk (Gloeckle et al. 2024)",
    "causal": "each a transformer layer on the head before it",
    "anticausal": "each a transformer layer on the head after it",
    "linear": "each a linear map of the trunk's state",
    "sequential": "each a module that reads the token before the one that it predicts (DeepSeek-V3)",
    "medusa": "each a residual layer on the state of head 1 (Medusa)",
}


def card(model: Model, config: ModelConfig, options: ConvertConfig, dtype: str, has_tokenizer: bool, *,
         loaded: str = "the trunk and head 1, which predicts the next token", running: str = "") -> str:
    """Returns the text of the model card.

    Args:
      model: with what is known of its making.
      config: its shape, with the heads that are written.
      options: of the conversion.
      dtype: of the numbers.
      has_tokenizer: whether tokenizer files are written.
      loaded: what transformers makes of the folder.
      running: how it is run; empty: as the format hf is.
    """
    name = options.name or pathlib.Path(options.dst).name
    heads = options.heads or config.num_heads
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- multi-token-prediction\n- mtp_jax\n"
        "---",
        f"# {name}",
        f"A language model trained with multi-token prediction by mtp_jax. What transformers loads is {loaded}.",
        _shape(model, config, heads, dtype),
        *_training(model),
        *_metrics(model, heads),
        running or _running(options, heads, has_tokenizer),
        "## Licence\n\nNot stated: whoever publishes the model chooses it, with the licence of the data in mind.",
        f"Written by mtp_jax {mtp_jax.__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _shape(model: Model, config: ModelConfig, heads: int, dtype: str) -> str:
    """Returns the table of the model's shape."""
    kind = "head 1 alone" if heads == 1 else f"{heads} heads, {config.head_kind}: {_KINDS.get(config.head_kind, '')}"
    total = sum(math.prod(leaf.shape) for leaf in model.leaves.values())
    rows = [("prediction heads", kind), ("parameters of the run's model, all heads", count(total)),
            ("layers, trunk and heads", config.num_layers + config.extra_trunk_layers), ("width", config.d_model),
            ("attention heads (key and value heads)", f"{config.num_attention_heads} ({config.kv_heads})"),
            ("inner width of the MLP", config.mlp_dim), ("vocabulary", config.vocab_size),
            ("tokens of context", model.window), ("numbers", dtype)]
    return _table("## Model", rows)


def _training(model: Model) -> list[str]:
    """Returns the tables of data and recipe, where the run is known."""
    known = model.facts.get("config")
    if not known:
        source = pathlib.Path(str(model.facts.get("source", ""))).name
        return [f"## Training\n\nConverted from {source or 'another checkpoint'}, which does not tell how it was "
                "trained."]
    run: Config = from_dict(known)
    data, recipe = run.data, run.optimizer
    corpus = ", ".join(f"{part.name} ({part.source}{' ' + pathlib.Path(part.path).name if part.path else ''})"
                       for part in data.mixture) or \
        f"{data.source}{' ' + pathlib.Path(data.path).name if data.path else ''}"
    step = model.facts.get("step", 0)
    rows = [("corpus", corpus), ("tokenizer", "bytes" if data.tokenizer == "bytes" else pathlib.Path(
                data.tokenizer).name),
            ("steps", f"{step} of {run.train.num_steps}"), ("rows a step", data.batch_size),
            ("tokens a row", data.seq_len), ("tokens seen", count(step * data.batch_size * data.seq_len)),
            ("optimizer", f"AdamW, b1 {recipe.b1:g}, b2 {recipe.b2:g}, weight decay {recipe.weight_decay:g}"),
            ("learning rate", f"{recipe.learning_rate:g}, {recipe.schedule}, {recipe.warmup_steps} steps of warm-up"),
            ("gradient clipped at", f"{recipe.clip_norm:g}"),
            ("loss of the heads", f"{run.objective.reduction}, weights {run.objective.schedule}")]
    if run.init_from.path:
        rows.append(("started from", pathlib.Path(run.init_from.path).name))
    if run.train.trainable:
        rows.append(("what trained", ", ".join(run.train.trainable)))
    return [_table("## Training", rows)]


def _metrics(model: Model, heads: int) -> list[str]:
    """Returns the table of the last validation, one line a head, where there is one."""
    last: Mapping[str, Any] | None = (model.facts.get("metrics") or {}).get("validation")
    if not last:
        return []
    bits = last.get("validation_bits_per_byte")
    lines = [f"## Held-out text, at step {last['step']}", "",
             f"| head | nats a token |{' bits a byte |' * bool(bits)} accuracy |",
             f"|---|---|---|{'---|' * bool(bits)}"]
    for k, loss in enumerate(last["head_loss"][:heads]):
        if loss is not None:
            byte = f" {loss / math.log(2):.3f} |" if bits else ""
            byte = f" {bits[k]:.3f} |" if isinstance(bits, list) and bits[k] is not None else byte
            lines.append(f"| {k + 1} | {loss:.3f} |{byte} {last['head_accuracy'][k]:.1%} |")
    length = last.get("expected_accepted_length")
    if length is not None and heads == len(last["head_loss"]) > 1:
        lines += ["", f"Drafting with all heads would yield about {length:.2f} tokens a forward (estimated on this "
                  "text)."]
    return ["\n".join(lines)]


def _running(options: ConvertConfig, heads: int, has_tokenizer: bool) -> str:
    """Returns how the model is run."""
    from mtp_jax.convert import hf  # which imports this file

    lines = hf.python_lines(".")[:None if has_tokenizer else 2]
    text = "\n".join(["## Running it", "", "Head 1, in this folder, by transformers 4 or 5:", "", "```python", *lines,
                      "```"])
    if has_tokenizer:
        text += ("\n\nThe tokenizer puts BOS before a text, as in training. tokenizer_test.json holds texts with the "
                 "ids that they must have. A text that spells out a special token gets that token's id in "
                 "transformers, and is plain text in mtp_jax.")
    more = f"all {heads} heads, which are in mtp_heads.safetensors, " if heads > 1 else ""
    return text + (
        f"\n\nIn mtp_jax, {more}as a run's folder:\n\n```sh\npython -m mtp_jax.convert --src=. --src_format=hf "
        "--dst=RUN --dst_format=workdir\npython -m mtp_jax.generate --workdir=RUN --prompt=TEXT\n```")


def _table(title: str, rows: list[tuple[str, Any]]) -> str:
    return "\n".join([title, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
