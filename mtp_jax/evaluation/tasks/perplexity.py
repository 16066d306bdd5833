"""Perplexity of every head on a text: nats per token, bits per byte, and how often the likeliest token is right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtp_jax.evaluation.likelihood import Reading, Scorer
from mtp_jax.evaluation.loglikelihood import encode_text, windows
from mtp_jax.evaluation.problems import need_text, read_jsonl, read_text
from mtp_jax.evaluation.progress_file import ProgressFile
from mtp_jax.evaluation.request import Request, output_path
from mtp_jax.evaluation.task import Metrics, Result, Setting, Task
from mtp_jax.intervals import bootstrap

CHUNK = 16  # batches between two records of progress


@dataclasses.dataclass(frozen=True)
class Row:
    """What scores some tokens of a document: ids[begin:end], the tokens from `first` on."""

    document: int
    begin: int
    end: int
    first: int


class Perplexity(Task):
    """Each token of a text is scored once by every head that can: head k by the tokens up to k places before it."""

    name = "perplexity"
    drawing_flags = ("completions",)  # refused with a reason of its own
    about = "Nats per token, bits per byte and accuracy of every head on any text."
    data_help = "a text file, or JSONL with a document a line, also .gz"
    settings = (Setting("stride", 0, "Tokens that a window scores; the rest of it is context. 0: half the window."),
                Setting("field", "text", "Field of JSONL that holds the text."))

    def run(self, request: Request) -> Result:
        """Reads the documents in windows.

        Raises:
          ValueError: --data is no text, the stride does not fit, or no document has a token.
        """
        if request.config.completions:
            raise ValueError("--completions: --task=perplexity reads a text with the model: give --workdir and --data.")
        documents = request.take(self._documents(request))
        model = request.model
        if model.tokenizer is None:
            raise ValueError("The model has no tokenizer: load it from its workdir.")
        stride = self._stride(request.option("stride"), model.window, model.heads)
        errors, encoded = [], list[tuple[str, int, np.ndarray]]()
        for task_id, text in documents:
            try:
                ids = encode_text(model.tokenizer, text)
            except ValueError as error:
                errors.append({"task_id": task_id, "error": str(error)})
                continue
            if len(ids) == 1:
                errors.append({"task_id": task_id, "error": "The document has no token."})
            else:
                encoded.append((task_id, len(text.encode()), ids))
        if not encoded:
            raise ValueError(f"--data={request.config.data}: {errors[0]['error']}")
        rows = [Row(number, *row) for number, (*_, ids) in enumerate(encoded)
                for row in windows(len(ids), model.window, stride)]
        settings = {"task": self.name, **request.settings(), "stride": stride}
        progress = ProgressFile(output_path(request.config), settings, restart=request.config.restart)
        sums_RxHx3 = _read(request, [ids for *_, ids in encoded], rows, progress)
        samples = _samples(encoded, rows, sums_RxHx3)
        tokens_per_byte = sum(len(ids) - 1 for *_, ids in encoded) / sum(size for _, size, _ in encoded)
        metrics = _metrics(sums_RxHx3[..., :3], tokens_per_byte, request.config.seed)
        if model.config.trunk_kind == "looped":
            metrics.values["loops_per_token"] = _loops(sums_RxHx3, model.config.loops)
        return Result(self.name, metrics, samples, settings, errors)

    def _documents(self, request: Request) -> list[tuple[str, str]]:
        """Returns name and text of each document."""
        path = request.data
        assert path is not None
        if not path.name.removesuffix(".gz").endswith(".jsonl"):
            return [(path.name, read_text(path))]
        found, field = [], request.option("field")
        for number, (where, record) in enumerate(read_jsonl(path)):
            need_text(record, where, field)
            found.append((str(record.get("id", f"{path.name}/{number}")), record[field]))
        return found

    @staticmethod
    def _stride(stride: int, window: int, heads: int) -> int:
        """Returns the stride that the setting means."""
        # Head k looks k tokens back from what it scores, and that must lie in the window.
        most = window + 1 - heads
        if most < 1:
            raise ValueError(f"window={window} is too short for {heads} heads: raise --window or lower --heads.")
        if not 0 <= stride <= most:
            raise ValueError(f"--set=stride={stride} must lie in 1..{most}, so that the last of {heads} heads finds "
                             "what it looks back to in the window; 0: half the window.")
        return stride or min(most, max(1, window // 2))


def _read(request: Request, documents: Sequence[np.ndarray], rows: Sequence[Row], progress: ProgressFile) -> np.ndarray:
    """Returns for each row and head [sum of -log p, right guesses, tokens], and with early exit from a looped trunk
    the loops that it took, [R, H, 3 or 4]."""
    scorer = Scorer(request.model, batch_size=request.config.batch_size)
    heads, size = range(1, request.model.heads + 1), CHUNK * scorer.batch_size
    found: list[list[list[float]]] = []
    with request.progress(sum(row.end - row.first for row in rows), "tokens") as bar:
        for start in range(0, len(rows), size):
            part, key = rows[start:start + size], f"rows {start}"
            if key not in progress:
                ids = [documents[row.document][row.begin:row.end] for row in part]
                progress.add(key, [_sums(row, inside, reading)
                                   for row, inside, reading in zip(part, ids, scorer.read(ids, heads=heads))])
            found += progress[key]
            bar.update(sum(row.end - row.first for row in part))
    return np.array(found)


def _sums(row: Row, ids: np.ndarray, reading: Reading) -> list[list[float]]:
    """Returns [sum of -log p, right guesses, tokens] of each head over the tokens that a row scores; with early exit a
    fourth number, the loops after which the positions left that scored them, added up."""
    found = []
    for k in reading.logprob:
        # What head k says at place i is of token i + k; it says nothing of the first k - 1 tokens of a document.
        start = max(row.first - row.begin - k, 0)
        logprob, right = reading.logprob[k][start:], reading.top[k][start:] == ids[start + k:]
        found.append([-float(logprob.sum(dtype=np.float64)), int(right.sum()), len(logprob)])
        if reading.loops is not None:
            found[-1].append(int(reading.loops[start:start + len(logprob)].sum()))
    return found


def _loops(sums_RxHx3: np.ndarray, most: int) -> float:
    """Returns the loops after which positions left that scored a token with head 1, mean over them."""
    if sums_RxHx3.shape[2] == 3:
        return float(most)
    return float(sums_RxHx3[:, 0, 3].sum() / sums_RxHx3[:, 0, 2].sum())


def _samples(encoded: Sequence[tuple[str, int, np.ndarray]], rows: Sequence[Row], sums_RxHx3: np.ndarray
             ) -> list[dict[str, Any]]:
    """Returns what was found of each document."""
    sums_DxHx3 = np.zeros((len(encoded), sums_RxHx3.shape[1], 3))
    np.add.at(sums_DxHx3, [row.document for row in rows], sums_RxHx3[..., :3])
    return [{"task_id": task_id, "bytes": size, "tokens": len(ids) - 1, "head_nats": sums_Hx3[:, 0].tolist(),
             "head_right": sums_Hx3[:, 1].astype(int).tolist(), "head_tokens": sums_Hx3[:, 2].astype(int).tolist()}
            for (task_id, size, ids), sums_Hx3 in zip(encoded, sums_DxHx3)]


def _metrics(sums_RxHx3: np.ndarray, tokens_per_byte: float, seed: int) -> Metrics:
    """Returns the numbers of each head that scored a token, with intervals over windows."""
    values, intervals = dict[str, float](), dict[str, tuple[float, float]]()
    for head, (nats_R, right_R, count_R) in enumerate(np.moveaxis(sums_RxHx3, 0, 2), 1):
        there_R = count_R > 0
        if not there_R.any():
            continue
        nats_R, right_R, count_R = nats_R[there_R], right_R[there_R], count_R[there_R]
        nats = float(nats_R.sum() / count_R.sum())
        between = bootstrap(nats_R / count_R, weights=count_R, seed=seed)
        # The first k - 1 tokens, which head k cannot score, are taken to be like the others.
        bits = tokens_per_byte / math.log(2)
        values |= {f"head_{head}_nats_per_token": nats, f"head_{head}_bits_per_byte": nats * bits,
                   f"head_{head}_accuracy": float(right_R.sum() / count_R.sum())}
        intervals |= {f"head_{head}_nats_per_token": between,
                      f"head_{head}_bits_per_byte": (between[0] * bits, between[1] * bits),
                      f"head_{head}_accuracy": bootstrap(right_R / count_R, weights=count_R, seed=seed)}
    values["perplexity"] = math.exp(min(values["head_1_nats_per_token"], 700.0))  # of head 1, per token
    values["tokens_per_byte"] = tokens_per_byte
    return Metrics(values, intervals)


TASK = Perplexity()
