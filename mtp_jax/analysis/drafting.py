"""What a model's heads are good for: tokens a forward, the speed beside head 1 alone, and a text coloured by head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
from etils import epath

from mtp_jax.config import ModelConfig
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding import DecodingModel, Generation, generate, terminal
from mtp_jax.decoding.load import load_model, read_config
from mtp_jax.model.heads import get_head_kind
from mtp_jax.model.language_model import num_trunk_layers

NEW_TOKENS = 160  # of each text
CODE = ("def __init__(self", "import os", "class ", "for i in range(")  # beginnings of Python code
TURNS = 3
FEWEST = 64  # tokens that a speed is told of


@dataclasses.dataclass(frozen=True)
class Trial:
    """The same prompts continued with head 1 alone and with all heads, greedily; and a sample drawn with all heads.

    Attributes:
      model: with all its heads.
      alone: one generation a prompt, of head 1 alone.
      drafted: the same with all heads; empty for a model of one head.
      prompt: that the sample continues; may be empty.
      prompt_ids: BOS, and those of the prompt.
      sample: drawn.
    """

    model: DecodingModel
    alone: list[Generation]
    drafted: list[Generation]
    prompt: str
    prompt_ids: list[int]
    sample: Generation


def run_trial(workdir: epath.PathLike, *, temperature: float) -> Trial:
    """Decodes with the newest checkpoint of a workdir.

    The two ways take turns, prompt by prompt, one row at a time, both compiled alike; of each prompt the fastest of
    three turns counts, for other programs of this machine only slow them down.

    Args:
      workdir: of a run.
      temperature: of the sample.

    Raises:
      ValueError, CheckpointError: as `load_model`.
      NotImplementedError: the kind of heads can be trained but not decoded with.
    """
    model = load_model(workdir)
    prompts = fitting_prompts(model, workdir)
    new = min(NEW_TOKENS, model.window - max(len(ids) for _, ids in prompts))
    ways: dict[int, list[Generation]] = {heads: [] for heads in (1, model.heads)}
    for _, ids in prompts:
        turns = [{heads: generate(model, [ids], max_new_tokens=new, heads=heads) for heads in ways}
                 for _ in range(TURNS)]
        for heads, done in ways.items():
            done.append(min((turn[heads] for turn in turns), key=lambda run: run.seconds))
    prompt, ids = prompts[0]
    sample = generate(model, [ids], max_new_tokens=new, temperature=temperature)
    return Trial(model, ways[1], ways[model.heads] if model.heads > 1 else [], prompt, ids, sample)


def fitting_prompts(model: DecodingModel, workdir: epath.PathLike) -> list[tuple[str, list[int]]]:
    """Returns beginnings for the corpus of a run, with their ids: of code for Python's library, else BOS alone."""
    tokenizer = cast(Tokenizer, model.tokenizer)  # load_model has one or raises
    data = read_config(workdir).data
    texts = CODE if data.source == "stdlib" and not data.mixture else ()  # of others we know nothing: begin a document
    found = [(text, [tokenizer.bos_id, *map(int, tokenizer.encode(text))]) for text in texts]
    return [(text, ids) for text, ids in found if 2 * len(ids) <= model.window] or [("", [tokenizer.bos_id])]


def report_lines(trial: Trial, *, temperature: float, coloured: bool) -> list[str]:
    """Returns a trial as lines for a person.

    Args:
      trial: from `run_trial`.
      temperature: that its sample was drawn with.
      coloured: colour the sample by the heads that drafted it, in a terminal's codes.
    """
    model, sample = trial.model, trial.sample
    after = f", after {trial.prompt!r}" if trial.prompt else ", from the start of a text"
    drafts = model.heads > 1
    told = f"; {sample.tokens_per_forward:.2f} tokens a forward" if drafts else ""
    lines = [*speed_lines(trial.alone, trial.drafted), *layer_lines(model.config), "",
             f"A sample at step {model.step} (temperature {temperature}{told}){after}:"]
    if coloured and drafts:
        lines.append("    " + terminal.legend(model.heads))
    text = terminal.harmless(trial.prompt)
    for piece, head in terminal.pieces(cast(Tokenizer, model.tokenizer), trial.prompt_ids, sample.tokens[0],
                                        sample.drafted_by[0]):
        piece = terminal.harmless(piece)
        text += terminal.colour(piece, head) if coloured else piece
    return [*lines, *("    " + line.rstrip() for line in text.split("\n"))]


def speed_lines(alone: Sequence[Generation], drafted: Sequence[Generation]) -> list[str]:
    """Returns what drafting with all heads brings, beside head 1 alone on the same prompts."""
    tokens = sum(int(run.produced.sum()) for run in alone)
    one = tokens / sum(run.seconds for run in alone)
    many = "prompts" if len(alone) > 1 else "prompt"
    lines = [f"Decoding on this machine, greedily, {len(alone)} {many}, {tokens} tokens:"]
    if not drafted:
        return [*lines, f"    the one head    1.00 tokens a forward   {one:8,.0f} tokens/s"]
    produced, forwards, blocks = (sum(int(getattr(run, name).sum()) for run in drafted)
                                  for name in ("produced", "forwards", "blocks"))
    rate, heads = produced / sum(run.seconds for run in drafted), drafted[0].heads
    faster = f", {rate / one:.2f} times as fast" if tokens >= FEWEST else "; too few tokens to compare"
    lines += [f"    head 1 alone    1.00 tokens a forward   {one:8,.0f} tokens/s",
              f"    all {heads} heads    {produced / forwards:5.2f} tokens a forward   {rate:8,.0f} tokens/s{faster}"]
    if blocks:
        shares = np.sum([run.accepted.sum(axis=0) for run in drafted], axis=0) / blocks
        places = ", ".join(str(place) for place in range(1, heads))
        lines.append(f"    accepted at draft {places}: {', '.join(f'{share:.0%}' for share in shares)}")
    return lines


def layer_lines(config: ModelConfig) -> list[str]:
    """Returns what the heads cost: how many layers a forward runs with all of them, and with head 1 alone."""
    kind, N = get_head_kind(config.head_kind), config.num_heads
    alone, drafting = (num_trunk_layers(config) + kind.layers(kind.loaded(N, k)) for k in (1, N))
    if drafting == alone:
        return []
    return [f"    A forward with all heads runs {drafting} layers, with head 1 alone {alone}: the deeper the trunk, "
            "the less they weigh."]
