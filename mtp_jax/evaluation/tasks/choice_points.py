"""Choice points (section 5.1): how much of the n-token loss goes to which steps of a text.

`evaluation.theory.choice_points` defines the weight of a step; here it is summed over kinds of steps. Where tokens are
letters, the first letters of a word decide what follows, and the later ones mostly follow from them: by the paper's
account the emphasis of first letters is above that of all steps, and that of later ones below.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Metrics, Result, Setting, Task
from mtp_jax.evaluation.theory.choice_points import credits, emphasis, emphasis_interval, weights
from mtp_jax.evaluation.theory.rows import text_rows
from mtp_jax.model import get_head_kind

KINDS = ("first", "second", "third", "later", "space", "sign", "end")
MEANING = ("token that begins a word", "second one of a word", "third", "fourth and later", "space or new line",
           "any other sign", "special token")
SHOWN = 250  # tokens of the example


class ChoicePoints(Task):
    """The weight of a text's steps."""

    name = "choice_points"
    about = "Which steps of a text the n-token loss weighs, against the next-token loss (the paper's section 5.1)."
    data_help = "optional, a text; left out: the run's own validation data"
    settings = (Setting("rows", 128, "Rows of text to read, each of the model's window."),)

    def run(self, request: Request) -> Result:
        """Reads the rows with all heads and sums up weights."""
        model = request.model
        if get_head_kind(model.config.head_kind).in_turn:
            raise ValueError(f"--task=choice_points compares heads that do not see the tokens between, and those of "
                             f"kind {model.config.head_kind!r} do: take a run of another kind.")
        count = request.config.limit or int(request.option("rows"))
        if count < 1:
            raise ValueError(f"--set=rows={count} must be at least 1.")
        n, rows = model.heads, text_rows(request, count)
        rows = [row for row in rows if len(row) > 2 * n]
        if not rows:
            raise ValueError(f"No row is longer than {2 * n} tokens, which {n} heads need: raise --window.")
        with request.progress(len(rows), "rows") as bar:
            readings = Scorer(model, batch_size=request.config.batch_size).read(
                rows, heads=range(1, n + 1), progress=bar.update)
        weight, own = np.zeros((2, len(rows), len(KINDS)))  # sums by row and kind
        steps, credit = np.zeros((len(rows), len(KINDS)), np.int64), np.zeros((n, len(KINDS)))
        for number, (row, reading) in enumerate(zip(rows, readings)):
            losses = {k: -np.asarray(logprob, np.float64) for k, logprob in reading.logprob.items()}
            t = np.arange(n, len(row) - n + 1)  # steps that no term is missing of
            kinds = step_kinds(row, model.tokenizer)[t]
            weight[number] = np.bincount(kinds, weights(losses)[t - 1], len(KINDS))
            own[number] = np.bincount(kinds, losses[1][t - 1], len(KINDS))
            steps[number] = np.bincount(kinds, minlength=len(KINDS))
            for m, values in credits(losses).items():
                credit[m - 1] += np.bincount(kinds, values[t - 1], len(KINDS))
        metrics = self._metrics(n, weight, own, steps, request.config.seed)
        metrics.tables["credits"] = {kind: (credit[:, i] / max(1, steps[:, i].sum())).tolist()
                                     for i, kind in enumerate(KINDS)}
        metrics.tables["example"] = _example(rows[0], readings[0].logprob, model.tokenizer)
        return Result(self.name, metrics, [], {"rows": len(rows), "n": n, **request.settings()})

    def _metrics(self, n: int, weight: np.ndarray, own: np.ndarray, steps: np.ndarray, seed: int) -> Metrics:
        """Returns emphasis and shares of each kind of step, and of all."""
        values: dict[str, float] = {"emphasis": emphasis(weight, own, n)}
        intervals = {"emphasis": emphasis_interval(weight.sum(axis=1), own.sum(axis=1), n, seed=seed)}
        table: dict[str, Any] = {}
        for i, (kind, meaning) in enumerate(zip(KINDS, MEANING)):
            if not steps[:, i].sum():
                continue
            values[f"emphasis_{kind}"] = emphasis(weight[:, i], own[:, i], n)
            intervals[f"emphasis_{kind}"] = emphasis_interval(weight[:, i], own[:, i], n, seed=seed)
            table[kind] = {"meaning": meaning, "steps": int(steps[:, i].sum()),
                           "loss": float(own[:, i].sum() / steps[:, i].sum()),
                           "share_of_steps": float(steps[:, i].sum() / steps.sum()),
                           "share_of_next_token_loss": float(own[:, i].sum() / own.sum()),
                           "share_of_n_token_loss": float(weight[:, i].sum() / weight.sum())}
        for kind, entry in table.items():
            values[f"share_{kind}"] = entry["share_of_n_token_loss"]
            values[f"next_token_share_{kind}"] = entry["share_of_next_token_loss"]
        return Metrics(values, intervals, {"kinds": table})


def step_kinds(row: np.ndarray, tokenizer: Tokenizer | None) -> np.ndarray:
    """Returns the kind of each token, as its place in KINDS [tokens]; all "end" where there is no tokenizer.

    A word is a run of letters, digits and underscores. A token that holds the beginning of one, as those with a space
    before the word do, begins it.
    """
    found, length = np.full(len(row), KINDS.index("end")), 0  # length: tokens of the word so far
    texts = _texts(row, tokenizer)
    for place, token in enumerate(row):
        text = texts[int(token)]
        if not text:
            length = 0
            continue
        bare = text.lstrip()
        begins = len(bare) < len(text)
        if not bare or not _in_word(bare[0]):
            found[place], length = KINDS.index("sign" if bare else "space"), int(bool(bare) and _in_word(bare[-1]))
            continue
        length = 1 if begins else length + 1
        found[place] = min(length, 4) - 1
        length = length if _in_word(bare[-1]) else 0
    return found


def _in_word(letter: str) -> bool:
    """Tells whether a sign belongs to a word; a broken one is a part of a letter outside of ASCII."""
    return letter.isalnum() or letter in "_\ufffd"


def _texts(row: np.ndarray, tokenizer: Tokenizer | None) -> dict[int, str]:
    """Returns {token: its text} of a row; "" for special ones."""
    return {token: "" if tokenizer is None else tokenizer.decode([token]) for token in set(row.tolist())}


def _example(row: np.ndarray, logprob: dict[int, np.ndarray], tokenizer: Tokenizer | None) -> dict[str, list[Any]]:
    """Returns a piece of the first row: its tokens, and of each the next-token loss and the weight over n."""
    losses = {k: -np.asarray(values, np.float64) for k, values in logprob.items()}
    n = len(losses)
    shown = slice(n, min(len(row) - n + 1, n + SHOWN))
    texts = _texts(row, tokenizer)
    return {"text": [texts[int(token)] for token in row[shown]],
            "next_token": losses[1][shown.start - 1:shown.stop - 1].tolist(),
            "weight_over_n": (weights(losses)[shown.start - 1:shown.stop - 1] / n).tolist()}


TASK = ChoicePoints()
