"""How many tokens a forward yields when 2, 3, .. heads draft, on held-out text of the run itself.

`tokens_per_forward_k` is that of self-speculative decoding, as in the paper's Tables S2 and S3: prompts are the
beginnings of held-out rows, all k take turns on the same ones, no token stops, and a forward of the prompt counts as
one. It is greedy as there unless --temperature says otherwise: greedily a very small model writes the same words again
and again, where any draft is accepted.

`agreement_length_k` takes the held-out text as it stands: 1 + the mean length of the prefix of heads 2 to k that say
what head 1 says there, as `expected_accepted_length` in metrics.jsonl, also of heads that rest (see docs/metrics.md).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from etils import epath

from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Metrics, Result, Setting, Task

CONFIDENCE, DRAWS = 0.9, 2000


class Drafting(Task):
    """Tokens per forward over the number of heads in use."""

    name = "drafting"
    drawing_flags = ("temperature",)
    about = "tokens per forward of self-speculative decoding with 2 to n heads, on the run's held-out text"
    settings = (
        Setting("prompts", 128, "prompts, drawn among the held-out rows"),
        Setting("prompt_tokens", 64, "tokens of a prompt"),
        Setting("new_tokens", 32, "tokens that each is continued by"),
        Setting("heads", "", "numbers of heads that are tried, such as 2,4,8; empty: all from 2 on"),
    )

    def run(self, request: Request) -> Result:
        """Decodes the prompts with each number of heads.

        Raises:
          ValueError: the corpus is not the run's, its held-out side is too small, or the window too short.
        """
        from mtp_jax.decoding import generate

        rows = self.rows(request)
        prompts = [row[:request.option("prompt_tokens")] for row in rows]
        new = request.option("new_tokens")
        temperature = (request.config.temperatures or (0.0,))[0]
        values: dict[str, float] = {"tokens_per_forward_1": 1.0}
        intervals: dict[str, tuple[float, float]] = {}
        samples: list[dict[str, Any]] = [{"task_id": f"prompt {number}"} for number in range(len(prompts))]
        acceptance: dict[str, list[float]] = {}
        tried = self.numbers(request)
        batch = request.config.batch_size
        with request.progress(len(tried) * len(prompts), self.name) as bar:
            for k in tried:
                done = []
                for start in range(0, len(prompts), batch):
                    part = [prompt.tolist() for prompt in prompts[start:start + batch]]
                    done.append(generate(request.model, part, max_new_tokens=new, heads=k, stop=(),
                                         temperature=temperature, seed=request.config.seed))
                    bar.update(len(part))
                produced = np.concatenate([one.produced for one in done])
                forwards = np.concatenate([one.forwards for one in done])
                if set(produced.tolist()) != {new}:
                    raise ValueError(f"--set=new_tokens={new} and prompt_tokens={request.option('prompt_tokens')} do "
                                     f"not fit in the window of {request.model.window} tokens.")
                values[f"tokens_per_forward_{k}"] = float(produced.sum() / forwards.sum())
                intervals[f"tokens_per_forward_{k}"] = interval(produced, forwards)
                blocks = sum(int(one.blocks.sum()) for one in done)
                counts = np.sum([one.accepted.sum(axis=0) for one in done], axis=0)
                acceptance[str(k)] = [float(count) / blocks for count in counts]
                for sample, count in zip(samples, forwards.tolist()):
                    sample[f"forwards_{k}"] = count
                if k == tried[-1]:
                    texts = [text for one in done for text in one.text or [""] * len(one.tokens)]
                    for sample, text in zip(samples, texts):
                        sample["completion"] = text
        values |= agreement_lengths(request, rows) if tried else {}
        return Result(self.name, Metrics(values, intervals, {"acceptance": acceptance}), samples,
                      {**request.settings(), "temperature": temperature})

    def numbers(self, request: Request) -> list[int]:
        """Returns the numbers of heads to try, in order."""
        most, text = request.run_config().model.num_heads, request.option("heads")
        try:
            numbers = sorted({int(part) for part in text.split(",")} if text else range(2, most + 1))
        except ValueError as error:
            raise ValueError(f"--set=heads={text} must be whole numbers with commas between them.") from error
        if numbers and not 1 <= numbers[0] <= numbers[-1] <= most:
            raise ValueError(f"--set=heads={text} must lie between 1 and the model's {most} heads.")
        return numbers

    def rows(self, request: Request) -> list[np.ndarray]:
        """Returns the held-out texts, ids, whose beginnings are the prompts: rows up to the end of their document."""
        from mtp_jax.data.corpus import open_corpus

        config = request.run_config()
        corpus = open_corpus(config.data)
        stored = json.loads((epath.Path(request.config.workdir).expanduser() / "config.json").read_text())
        if corpus.hash != stored.get("corpus_hash"):
            raise ValueError(f"{request.config.workdir} was trained on another corpus than data.source="
                             f"{config.data.source!r} is here (its hash differs; for stdlib: another Python), so "
                             "nothing tells which text it has not seen: train it on this machine.")
        length, count = request.option("prompt_tokens"), request.option("prompts")
        for name in ("prompt_tokens", "prompts"):
            if request.option(name) < 1:
                raise ValueError(f"--set={name}={request.option(name)} must be at least 1.")
        found: list[np.ndarray] = []
        for part in corpus.parts.values():
            rows = part.rows["validation"]
            for number in np.random.default_rng(request.config.seed).permutation(len(rows)):
                if len(found) >= count:
                    break
                row = rows[int(number)]
                size = int(np.sum(row["segments"] == row["segments"][0]))  # its first document's, as training sees it
                if size >= length:
                    found.append(np.asarray(row["tokens"][:size], np.int32))
        found = request.take(found)
        if not found:
            raise ValueError(f"The held-out side of {request.config.workdir} has no row that begins with {length} "
                             "tokens of one document: lower --set=prompt_tokens.")
        return found


def agreement_lengths(request: Request, rows: list[np.ndarray]) -> dict[str, float]:
    """Returns 1 + the mean length of the agreeing prefix of heads 2 to k, for each k that the model has."""
    from mtp_jax.evaluation.likelihood import Scorer

    n = request.model.heads
    heads = range(1, n + 1)
    lengths = []
    for reading in Scorer(request.model, batch_size=request.config.batch_size).read(rows, heads=tuple(heads)):
        count = len(reading.top[n])  # positions where all heads have a target
        agree = [reading.top[k][:count] == reading.top[1][k - 1:k - 1 + count] for k in heads[1:]]
        lengths.append(np.cumprod(agree, axis=0).reshape(n - 1, count))
    means = np.concatenate(lengths, axis=1).mean(axis=1) if n > 1 else np.zeros(0)
    return {f"agreement_length_{k}": float(1 + means[:k - 1].sum()) for k in heads[1:]}


def interval(produced: np.ndarray, forwards: np.ndarray) -> tuple[float, float]:
    """Returns the bootstrap interval over prompts of tokens over forwards."""
    drawn = np.random.default_rng(0).integers(0, len(produced), (DRAWS, len(produced)))
    ratios = produced[drawn].sum(axis=1) / forwards[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


TASK = Drafting()
