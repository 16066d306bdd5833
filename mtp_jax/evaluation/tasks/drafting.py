"""How many tokens a forward yields when 2, 3, .. heads draft, on held-out text of the run itself.

Greedy self-speculative decoding, as in the paper's Tables S2 and S3: prompts are the beginnings of held-out rows, all k
take turns on the same ones, no token stops, and a forward of the prompt counts as one.
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
    about = "tokens per forward of greedy self-speculative decoding with 2 to n heads, on the run's held-out text"
    settings = (
        Setting("prompts", 64, "prompts, drawn among the held-out rows"),
        Setting("prompt_tokens", 64, "tokens of a prompt"),
        Setting("new_tokens", 64, "tokens that each is continued by"),
        Setting("heads", "", "numbers of heads that are tried, such as 2,4,8; empty: all from 2 on"),
    )

    def run(self, request: Request) -> Result:
        """Decodes the prompts with each number of heads.

        Raises:
          ValueError: the corpus is not the run's, its held-out side is too small, or the window too short.
        """
        from mtp_jax.decoding import generate

        prompts = self.prompts(request)
        new = request.option("new_tokens")
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
                    rows = [prompt.tolist() for prompt in prompts[start:start + batch]]
                    done.append(generate(request.model, rows, max_new_tokens=new, heads=k, stop=()))
                    bar.update(len(rows))
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
        return Result(self.name, Metrics(values, intervals, {"acceptance": acceptance}), samples, request.settings())

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

    def prompts(self, request: Request) -> list[np.ndarray]:
        """Returns the prompts, ids."""
        from mtp_jax.data.corpus import open_corpus

        config = request.run_config()
        corpus = open_corpus(config.data)
        stored = json.loads((epath.Path(request.config.workdir).expanduser() / "config.json").read_text())
        if corpus.hash != stored.get("corpus_hash"):
            raise ValueError(f"{request.config.workdir} was trained on another corpus than data.source="
                             f"{config.data.source!r} is here (its hash differs; for stdlib: another Python), so "
                             "nothing tells which text it has not seen: train it on this machine.")
        length, count = request.option("prompt_tokens"), request.option("prompts")
        found: list[np.ndarray] = []
        for part in corpus.parts.values():
            rows = part.rows["validation"]
            for number in np.random.default_rng(request.config.seed).permutation(len(rows)):
                row = rows[int(number)]
                # A row's beginning inside one document, as training sees it.
                if len(found) < count and len(row["tokens"]) >= length and len(set(row["segments"][:length])) == 1:
                    found.append(np.asarray(row["tokens"][:length], np.int32))
        found = request.take(found)
        if not found:
            raise ValueError(f"The held-out side of {request.config.workdir} has no row that begins with {length} "
                             "tokens of one document: lower --set=prompt_tokens.")
        return found


def interval(produced: np.ndarray, forwards: np.ndarray) -> tuple[float, float]:
    """Returns the bootstrap interval over prompts of tokens over forwards."""
    drawn = np.random.default_rng(0).integers(0, len(produced), (DRAWS, len(produced)))
    ratios = produced[drawn].sum(axis=1) / forwards[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


TASK = Drafting()
