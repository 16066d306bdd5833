"""Summaries by ROUGE-1, 2, 3, L and Lsum, from the package rouge-score (section 3.7; table S10 has all five).

Data: SciTLDR, or any JSONL of a source and a target; either may be a list: of the source's sentences, and of the
target's references. Against several references, a summary gets what SciTLDR's own script gives it: all measures against
the reference with the highest ROUGE-1 F1. The numbers are means over problems, between 0 and 1.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtp_jax.config import check_choice
from mtp_jax.evaluation.generation_task import GenerationTask
from mtp_jax.evaluation.problems import make_problems, need, read_jsonl
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Defaults, Metrics, Problem, Sample, Setting
from mtp_jax.intervals import bootstrap

KINDS = ("rouge1", "rouge2", "rouge3", "rougeL", "rougeLsum")
PARTS = ("precision", "recall", "fmeasure")
REFERENCES = ("best", "mean", "first")
LINES = ("text", "sentences")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Summaries(GenerationTask):
    """Summaries by ROUGE."""

    name = "summaries"
    about = "Summaries by ROUGE-1/2/3/L/Lsum, on SciTLDR or any JSONL of source and target."
    data_help = ("test.jsonl of SciTLDR, or any JSONL with a text (or a list of sentences) and its summary (or a list "
                 "of references); --set=source=NAME and --set=target=NAME name the fields")
    defaults = Defaults(max_new_tokens=128, stop=("\n",))
    settings = (
        Setting("source", "source", "Field of the text: a text, or a list of sentences."),
        Setting("target", "target", "Field of the summary: a text, or a list of references."),
        Setting("id", "paper_id", "Field that names a problem; where it is missing, its number does."),
        Setting("prefix", "", "Text before the source; \\n is a new line."),
        Setting("suffix", "\\nTL;DR:", "Text between the source and the summary; \\n is a new line."),
        Setting("references", "best", "Of several references: best (by ROUGE-1 F1), mean (over them) or first."),
        Setting("stem", True, "Whether words count as equal that have one stem (Porter's)."),
        Setting("lines", "text", "Where ROUGE-Lsum finds sentences: text (one a line), sentences (also behind . ! ?)."),
    )

    def problems(self, request: Request) -> list[Problem]:
        """Reads the sources and their references."""
        if importlib.util.find_spec("rouge_score") is None:
            raise ValueError("--task=summaries needs the package rouge-score: pip install 'mtp_jax[evaluation]'.")
        check_choice("--set=references", request.option("references"), REFERENCES)
        check_choice("--set=lines", request.option("lines"), LINES)
        source, target = request.option("source"), request.option("target")
        before, after = (request.option(name).replace("\\n", "\n") for name in ("prefix", "suffix"))

        def make(where: str, record: Mapping[str, Any], task_id: str) -> Problem:
            need(record, where, source, target)
            texts, references = _texts(record[source], where, source), _texts(record[target], where, target)
            references = [reference.strip() for reference in references if reference.strip()]
            if not references:
                raise ValueError(f"{where}: {target} is empty, and a summary needs a reference.")
            prompt = f"{before}{' '.join(text.strip() for text in texts)}{after}"
            return Problem(task_id, prompt, {"references": references})

        def name(number: int, record: Mapping[str, Any]) -> str:
            named = record.get(request.option("id"))
            return f"summaries/{number}" if named is None else str(named)

        return make_problems(read_jsonl(self.data(request)), name, make)

    def score(self, problem: Problem, completion: str, request: Request) -> Mapping[str, Any]:
        """Returns precision, recall and F1 of each measure."""
        return rouge(completion, problem.facts["references"], how=request.option("references"),
                     stem=request.option("stem"), sentences=request.option("lines") == "sentences")

    def metrics(self, samples: Sequence[Sample], request: Request) -> Metrics:
        """Returns means over problems, with 90 % bootstrap intervals; what could not be evaluated counts 0.

        Several samples of a problem count by their mean, and of several temperatures the first.
        """
        first = (self.drawing(request).temperatures[0], None)  # None: a file brought them
        ids = list(dict.fromkeys(sample.task_id for sample in samples))
        values, intervals = {}, {}
        for name in (f"{kind}_{part}" for part in reversed(PARTS) for kind in KINDS):
            by_problem: dict[str, list[float]] = {task_id: [] for task_id in ids}
            for sample in samples:
                if sample.temperature in first:
                    by_problem[sample.task_id].append(float(sample.fields.get(name, 0.0)))
            means = [float(np.mean(scores)) for scores in by_problem.values() if scores]
            values[name], intervals[name] = float(np.mean(means)), bootstrap(means, seed=request.config.seed)
        return Metrics(values, intervals)


def rouge(summary: str, references: Sequence[str], *, how: str = "best", stem: bool = True, sentences: bool = False
          ) -> dict[str, float]:
    """Returns {"rouge1_precision": .., "rouge1_recall": .., "rouge1_fmeasure": .., ..} of a summary, each in [0, 1].

    Args:
      summary: to score.
      references: at least one.
      how: "best": against the reference with the highest ROUGE-1 F1, the first of equals; "mean": over the references;
        "first": against the first.
      stem: whether words are cut to their stems.
      sentences: whether ROUGE-Lsum also takes what ends in . ! or ? for a sentence, and not lines alone.
    """
    split = (lambda text: _SENTENCE_END.sub("\n", text.strip())) if sentences else str.strip
    scored = []
    for reference in references[:1] if how == "first" else references:
        found = _scorer(stem)(split(reference), split(summary))
        scored.append({f"{kind}_{part}": float(getattr(found[kind], part)) for kind in KINDS for part in PARTS})
    if how == "mean":
        return {name: float(np.mean([scores[name] for scores in scored])) for name in scored[0]}
    return max(scored, key=lambda scores: scores["rouge1_fmeasure"])


@functools.cache
def _scorer(stem: bool) -> Callable[[str, str], Mapping[str, Any]]:
    """Returns what scores (reference, summary)."""
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes a second

    return RougeScorer(list(KINDS), use_stemmer=stem).score


def _texts(value: Any, where: str, field: str) -> list[str]:
    """Returns a text, or a list of them, as a list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {field} is {value!r:.60}, which is no text and no list of texts.")
    return texts


TASK = Summaries()
