"""Drawing the completions of a task's problems, in batches, with the model's own heads drafting."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding import DecodingModel, Generation, generate
from mtp_jax.evaluation.progress_file import ProgressFile
from mtp_jax.evaluation.request import Request

STRETCH = 16  # forwards between two looks for a stop sequence


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How completions are drawn.

    Attributes:
      temperatures: each is sampled.
      samples: completions of a problem at each.
      top_p: share of the probability that is drawn from.
      max_new_tokens: of a completion.
      stop: texts that a completion ends before.
    """

    temperatures: tuple[float, ...]
    samples: int
    top_p: float
    max_new_tokens: int
    stop: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A completion as the model wrote it.

    Attributes:
      problem: number of its problem.
      temperature: that it was drawn at.
      text: up to the first stop sequence.
    """

    problem: int
    temperature: float
    text: str


@dataclasses.dataclass
class Forwards:
    """What generating took."""

    tokens: int = 0
    forwards: int = 0
    seconds: float = 0.0
    loops: float = 0.0  # of a looped trunk, over all tokens


def draw(request: Request, prompts: Sequence[str], drawing: Drawing, progress: ProgressFile, forwards: Forwards
         ) -> tuple[list[Drawn], dict[int, str]]:
    """Draws the completions of all prompts.

    What a batch holds and its seed follow from the settings alone, so that an evaluation that goes on ends as one that
    was never stopped.

    Args:
      request: of the evaluation; its model generates.
      prompts: of the problems.
      drawing: how.
      progress: takes each batch when it is done, and has those done before.
      forwards: counts what it took; added to.

    Returns:
      The completions, problem by problem; and {number of a problem: why it has none}.

    Raises:
      ValueError: the tokenizer cannot write a stop sequence, or no prompt fits the window.
    """
    model = request.model
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("The model has no tokenizer: load it from its workdir.")
    check_stop(tokenizer, drawing.stop)
    rows, failed = _encode(model, prompts)
    items = sorted(((temperature, number, sample) for temperature in drawing.temperatures for number in rows
                    for sample in range(drawing.samples)), key=lambda item: (item[0], len(rows[item[1]]), item[1:]))
    size = request.config.batch_size
    batches = [items[start:start + size] for start in range(0, len(items), size)]
    # A batch has one temperature.
    batches = [[item for item in batch if item[0] == temperature] for batch in batches
               for temperature in dict.fromkeys(item[0] for item in batch)]
    drawn: list[Drawn] = []
    with request.progress(len(items), "completions") as bar:
        for number, batch in enumerate(batches):
            key = f"batch {number}"
            if key not in progress:
                progress.add(key, run_batch(model, tokenizer, [rows[item[1]] for item in batch], batch[0][0], drawing,
                                            size if len(batches) > 1 else len(batch),
                                            seed=batch_seed(request.config.seed, number)))
            texts, took = progress[key]
            forwards.tokens, forwards.forwards = forwards.tokens + took[0], forwards.forwards + took[1]
            forwards.seconds += took[2]
            forwards.loops += sum(took[3:])  # files of earlier versions have three numbers
            drawn += [Drawn(item[1], item[0], text) for item, text in zip(batch, texts)]
            bar.update(len(batch))
    order = {temperature: place for place, temperature in enumerate(drawing.temperatures)}
    return sorted(drawn, key=lambda one: (one.problem, order[one.temperature])), failed


def batch_seed(seed: int, number: int) -> int:
    """Returns the seed of a batch. Seeds that follow one another would share the draws of all batches but one."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def check_stop(tokenizer: Tokenizer, stop: Sequence[str]) -> None:
    """Raises ValueError where a tokenizer cannot write a stop sequence, so that it would never be found."""
    for text in stop:
        try:
            back = tokenizer.decode(tokenizer.encode(text))
        except ValueError as error:
            raise ValueError(f"The model's tokenizer cannot write the stop sequence {text!r} ({error}): name others "
                             "with --stop.") from error
        bare = text.lstrip(" ")  # some drop a space at the beginning of a text
        if (bare or text) not in back:
            raise ValueError(f"The model's tokenizer writes the stop sequence {text!r} as {back!r}, so it is never "
                             "found: name others with --stop.")


def cut(text: str, stop: Sequence[str]) -> str:
    """Returns a text up to the first stop sequence."""
    ends = [place for place in (text.find(end) for end in stop) if place >= 0]
    return text[:min(ends)] if ends else text


def _encode(model: DecodingModel, prompts: Sequence[str]) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Returns the ids of the prompts that fit the window, by number, and why the others do not."""
    from mtp_jax.decoding.generate import encode

    rows, failed = {}, {}
    for number, prompt in enumerate(prompts):
        try:
            row = encode(model, [prompt])[0]
        except ValueError as error:
            failed[number] = str(error)
            continue
        if len(row) >= model.window:
            failed[number] = (f"The prompt has {len(row)} tokens and does not fit the window of {model.window}, which "
                              "must hold a completion too.")
        else:
            rows[number] = row
    if not rows:
        raise ValueError(f"None of the {len(prompts)} prompts can be used. The first: {failed[0]} A shorter prompt, or "
                         "--window beyond what the model was trained on, would help.")
    return rows, failed


def run_batch(model: DecodingModel, tokenizer: Tokenizer, rows: Sequence[np.ndarray], temperature: float,
              drawing: Drawing, size: int, *, seed: int) -> tuple[list[str], tuple[int, int, float, float]]:
    """Returns the completions of one batch, and its (tokens, forwards, seconds, loops of all tokens).

    The batch is filled up to `size` with its first row, so that all batches share one program.
    """
    texts, result = write_batch(model, tokenizer, rows, temperature, drawing, size, seed=seed)
    produced, forwards = int(result.produced[:len(rows)].sum()), int(result.forwards[:len(rows)].sum())
    loops = produced * result.trunk_loops if result.token_loops is None else result.token_loops[:len(rows)].sum()
    return texts, (produced, forwards, result.seconds, float(loops))


def write_batch(model: DecodingModel, tokenizer: Tokenizer, rows: Sequence[np.ndarray], temperature: float,
                drawing: Drawing, size: int, *, seed: int) -> tuple[list[str], Generation]:
    """Returns the completions of one batch, up to the first stop sequence, and what was generated for them.

    Rows of the generation beyond those given fill the batch up, and mean nothing.
    """
    filled = [row.tolist() for row in rows] + [rows[0][:1].tolist()] * (size - len(rows))
    ids: list[list[int]] = [[] for _ in range(size)]

    def enough(row: int, new: np.ndarray, heads: Any) -> bool:
        del heads
        if row >= len(rows):
            return True
        ids[row] += new.tolist()
        written = tokenizer.decode(ids[row])
        return any(end in written for end in drawing.stop)

    result = generate(model, filled, max_new_tokens=drawing.max_new_tokens, temperature=temperature,
                      top_p=drawing.top_p if temperature else 1.0, seed=seed,
                      on_tokens=enough if drawing.stop or size > len(rows) else None, stream_every=STRETCH)
    assert result.text is not None
    return [cut(text, drawing.stop) for text in result.text[:len(rows)]], result
