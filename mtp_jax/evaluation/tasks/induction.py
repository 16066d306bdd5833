"""Induction (the paper, section 4.1): the second token of a name, once the story has had the name.

Characters of held-out stories get random names of two tokens that no story for training has. Only the second token is
scored, at each place after the first: which name comes next is a matter of the story.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mtp_jax.data.tasks.names import Mentions, find_mentions, rename, two_token_names
from mtp_jax.data.tasks.names_made import MadeStoriesOptions, make_stories
from mtp_jax.data.tasks.options import read_options
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding import DecodingModel
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.evaluation.problems import need_text, read_jsonl
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Metrics, Result, Setting, Task
from mtp_jax.intervals import bootstrap


@dataclasses.dataclass(frozen=True)
class Row:
    """A part of a story that fits the window.

    Attributes:
      story: its number.
      ids: BOS and the part's tokens.
      known: indices in `ids` of second tokens of names that the row had before.
      first: indices of those of names that it has for the first time.
    """

    story: int
    ids: np.ndarray
    known: np.ndarray
    first: np.ndarray


class Induction(Task):
    """Accuracy on the second token of a name after the first mention, of one checkpoint or of all that are kept."""

    name = "induction"
    drawing_flags = ("completions",)  # refused with a reason of its own
    about = "How often the second token of a name is foreseen once the story has had the name."
    data_help = ("optional JSONL with a story a line. Default: the run's data.validation_path; stories made with "
                 "held-out names where it trained on made_stories.")
    settings = (Setting("field", "text", "Field of JSONL that holds the story."),
                Setting("stories", 100, "Stories at most; those without a name that comes twice are not counted."),
                Setting("all_steps", False, "Evaluate every checkpoint that is kept, and tell the best of them, the "
                                            "mean over training and when a threshold was reached."),
                Setting("threshold", 0.5, "Accuracy whose first step is told, with all_steps."))

    def run(self, request: Request) -> Result:
        """Reads the stories with each checkpoint.

        Raises:
          ValueError: there is no story with names, or the tokenizer has no names of two tokens.
        """
        if request.config.completions:
            raise ValueError("--completions: --task=induction reads stories with the model: give --workdir.")
        model = request.model
        if model.tokenizer is None:
            raise ValueError("The model has no tokenizer: load it from its workdir.")
        stories = self.stories(request, model.tokenizer)
        rows = [row for number, (_, mentions) in enumerate(stories) for row in cut(mentions, model, number)]
        if not any(len(row.known) for row in rows):
            raise ValueError("No story has a name that comes twice within the window: give more stories, or a longer "
                             "--window.")
        run = request.run_config() if request.config.workdir else None
        tokens = run.data.batch_size * run.data.seq_len if run is not None else 0
        curve, counts = [], np.zeros(0)
        for step, loaded in self._models(request, model):
            counts = read(rows, loaded, len(stories), request.config.batch_size)
            curve.append({"step": step, "tokens": (step or 0) * tokens, **_accuracies(counts)})
        return Result(self.name, self._metrics(request, counts, curve), _samples(stories, counts),
                      {"task": self.name, **request.settings()})

    def stories(self, request: Request, tokenizer: Tokenizer) -> list[tuple[str, Mentions]]:
        """Returns (name, story) of held-out stories with names that no story for training has."""
        count, run = request.option("stories"), request.run_config() if request.config.workdir else None
        if request.data is None and run is not None and run.data.source == "made_stories":
            options = dataclasses.replace(read_options(MadeStoriesOptions, run.data.options, "made_stories"), share=1.0)
            made = make_stories(options, 0, count, held_out=True)
            return [(f"made@{number}", find_mentions(story.text, [name.text for name in story.names], tokenizer))
                    for number, story in enumerate(made)]
        path = request.data
        if path is None:
            from etils import epath

            if run is None or not run.data.validation_path:
                raise ValueError("--data is missing: the run has no data.validation_path; give held-out stories as "
                                 f"{self.data_help.removeprefix('optional ').split('.')[0]}.")
            path = epath.Path(run.data.validation_path).expanduser()
        names, field = two_token_names(tokenizer, held_out=True), request.option("field")
        found: list[tuple[str, Mentions]] = []
        for number, (where, record) in enumerate(read_jsonl(path)):
            if len(found) == count:
                break
            need_text(record, where, field)
            text, new = rename(record[field], names, random.Random(f"{request.config.seed}:{number}"))
            if new:
                found.append((str(record.get("id", f"{path.name}/{number}")), find_mentions(text, new, tokenizer)))
        if not found:
            raise ValueError(f"{path} has no story with a name: names are capitalised words that come three times or "
                             "more and stand inside sentences.")
        return found

    @staticmethod
    def _models(request: Request, model: DecodingModel) -> Iterator[tuple[int | None, DecodingModel]]:
        """Yields (step, model) of the checkpoints that are asked for; the newest comes last."""
        from etils import epath

        from mtp_jax.checkpoints.reading import finished_steps
        from mtp_jax.decoding.load import load_model

        config = request.config
        if request.option("all_steps"):
            if config.step is not None:
                raise ValueError(f"--step={config.step} and --set=all_steps=true contradict each other: leave one out.")
            for step in sorted(finished_steps(epath.Path(config.workdir).expanduser() / "checkpoints")):
                if model.step is not None and step < model.step:
                    other = load_model(config.workdir, heads=config.heads, window=config.window,
                                       mesh=config.mesh or None, tokenizer=model.tokenizer, step=step,
                                       exit_threshold=config.exit_threshold, loops=config.loops)
                    yield step, dataclasses.replace(model, weights=other.weights, step=step)
        yield model.step, model

    @staticmethod
    def _metrics(request: Request, counts: np.ndarray, curve: Sequence[dict[str, Any]]) -> Metrics:
        values = {name: value for name, value in curve[-1].items() if name not in ("step", "tokens")}
        intervals = {}
        for name, right, total in _columns(counts):
            there = total > 0
            if there.any():
                intervals[name] = bootstrap(right[there] / total[there], weights=total[there], seed=request.config.seed)
        values["scored"] = float(counts[:, 0, 1].sum())
        if request.option("all_steps"):
            values |= summarise(curve, request.option("threshold"))
        return Metrics(values, intervals, {"curve": list(curve)})


def cut(mentions: Mentions, model: DecodingModel, story: int) -> list[Row]:
    """Returns a story as rows that fit the model's window, one after the other; each begins with BOS.

    A name counts as known where the same row has had it: what the model cannot see it cannot repeat.

    Args:
      mentions: the story.
      model: its window and BOS.
      story: its number.
    """
    assert model.tokenizer is not None
    rows, size = [], model.window  # with BOS one more than the window: the last token is only predicted
    for begin in range(0, len(mentions.ids), size):
        seen: set[str] = set()
        known, first = list[int](), list[int]()
        for end, name in zip(mentions.ends, mentions.names):
            if begin + 1 <= end < begin + size:  # both tokens lie in the row
                (known if name in seen else first).append(end - begin + 1)
                seen.add(name)
        ids = np.concatenate([[model.tokenizer.bos_id], mentions.ids[begin:begin + size]])
        rows.append(Row(story, ids, np.array(known, np.int64), np.array(first, np.int64)))
    return rows


def read(rows: Sequence[Row], model: DecodingModel, stories: int, batch_size: int) -> np.ndarray:
    """Returns [stories, 1 + heads, 2]: right and all second tokens of known names by each head, from the first.

    The last entry of the second axis is of head 1 at names that are new in their row, for comparison.

    Args:
      rows: of all stories.
      model: that reads.
      stories: how many there are.
      batch_size: rows of a forward.
    """
    heads = range(1, model.heads + 1)
    counts = np.zeros((stories, 1 + model.heads, 2))
    for row, reading in zip(rows, Scorer(model, batch_size=batch_size).read([row.ids for row in rows], heads=heads)):
        for index, (head, places) in enumerate([*((head, row.known) for head in heads), (1, row.first)]):
            places = places[places >= head]
            right = reading.top[head][places - head] == row.ids[places]
            counts[row.story, index] += right.sum(), len(places)
    return counts


def summarise(curve: Sequence[dict[str, Any]], threshold: float) -> dict[str, float]:
    """Returns what a curve of accuracies over training says.

    Args:
      curve: {"step", "tokens", "accuracy"} of each checkpoint, rising.
      threshold: an accuracy.

    Returns:
      {"best_accuracy", "best_step": of the best checkpoint, chosen by this very metric as the paper does,
      "mean_accuracy": over the checkpoints, "tokens_to_threshold": of the first that reaches it, left out where none
      does}.
    """
    best = max(curve, key=lambda point: point["accuracy"])
    reached = [point["tokens"] for point in curve if point["accuracy"] >= threshold]
    return {"best_accuracy": best["accuracy"], "best_step": float(best["step"]),
            "mean_accuracy": float(np.mean([point["accuracy"] for point in curve])),
            **({"tokens_to_threshold": float(reached[0])} if reached else {})}


def _columns(counts: np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (metric, [stories] right, [stories] all) of what `read` returns."""
    names = ["accuracy", *(f"head_{head}_accuracy" for head in range(2, counts.shape[1])), "first_mention_accuracy"]
    for index, name in enumerate(names):
        yield name, counts[:, index, 0], counts[:, index, 1]


def _accuracies(counts: np.ndarray) -> dict[str, float]:
    return {name: float(right.sum() / max(total.sum(), 1)) for name, right, total in _columns(counts)}


def _samples(stories: Sequence[tuple[str, Mentions]], counts: np.ndarray) -> list[dict[str, Any]]:
    """Returns what the last checkpoint did on each story."""
    return [{"task_id": name, "tokens": len(mentions.ids), "right": int(right), "scored": int(total)}
            for (name, mentions), (right, total) in zip(stories, counts[:, 0])]


TASK = Induction()
