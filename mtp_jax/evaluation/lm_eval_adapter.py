"""Runs the tasks of EleutherAI's lm-evaluation-harness on our workdirs.

    python -m mtp_jax.evaluation.lm_eval_adapter --model_args workdir=runs/code --tasks arc_easy,lambada_openai

takes all that the command `lm_eval` does, with `--model mtp_jax` filled in. In a program, importing this module makes
the model known: `lm_eval.simple_evaluate(model="mtp_jax", model_args="workdir=runs/code", tasks=[...])`. Needs no
torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

try:
    import lm_eval.models  # noqa: F401  before ours is registered: lm_eval looks for its own only while it knows none
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    MISSING = f"The adapter needs lm-evaluation-harness ({error}): pip install 'mtp_jax[lm_eval]'."
    if __name__ == "__main__":
        sys.exit(f"ERROR: {MISSING}")
    raise ImportError(MISSING) from error

from mtp_jax.checkpoints import CheckpointError
from mtp_jax.decoding import DecodingModel
from mtp_jax.decoding.load import load_model
from mtp_jax.evaluation.generating import Drawing, batch_seed, run_batch
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.evaluation.loglikelihood import encode_pair, encode_text, windows
from mtp_jax.parallel import host_memory
from mtp_jax.parallel.compile_cache import set_compile_cache

NEW_TOKENS = 256  # where a task does not say, as lm_eval's own models have it
BATCH = 32
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # in the order lm_eval heeds them
_IDLE_WHEN_GREEDY = ("top_k", "min_p", "typical_p")  # shape the draws, of which there are none


@register_model("mtp_jax")
class WorkdirLM(LM):
    """A trained run as lm_eval's model.

    Texts begin with BOS, as in training. Scores are those of head 1; text is drawn with all heads drafting, which
    changes the speed alone. What is longer than the window loses its beginning, as with lm_eval's own models; how often
    is told at the end.
    """

    def __init__(self, workdir: str = "", *, model: DecodingModel | None = None, batch_size: int | str | None = None,
                 heads: int | None = None, window: int | None = None, mesh: str | None = None, step: int | None = None,
                 tokenizer: str | None = None, seed: int = 0, device: str | None = None,
                 max_batch_size: int | None = None):
        """Loads the model.

        Args:
          workdir: folder of a run, here or in a bucket.
          model: loaded already, instead of a workdir.
          batch_size: rows that are read or generated together; None or "auto": 32.
          heads: that draft when text is generated; None: all.
          window: tokens of context; None: what the run was trained on.
          mesh: devices, such as "data:2".
          step: of the checkpoint; None: the newest undamaged one.
          tokenizer: where the run's tokenizer lies now, if it was moved.
          seed: of the draws.
          device: lm_eval's flag; JAX_PLATFORMS and `mesh` decide here.
          max_batch_size: lm_eval's flag, for the batch sizes that other models find out.

        Raises:
          ValueError, CheckpointError: see `load_model`; or the batch size is no number.
        """
        super().__init__()
        del max_batch_size
        if device:
            logging.warning("--device=%s is not heeded: JAX takes the devices that JAX_PLATFORMS and mesh say.", device)
        if model is None:
            if not workdir:
                raise ValueError("workdir is missing: give --model_args workdir=FOLDER, that of a trained run.")
            if host_memory.will_run_on_cpu():
                host_memory.keep_freed_memory()
            set_compile_cache("auto")
            model = load_model(workdir, heads=heads, window=window, mesh=mesh, step=step, tokenizer=tokenizer)
        if model.tokenizer is None:
            raise ValueError("The model has no tokenizer: load it from its workdir.")
        self.model, self.tokenizer, self.seed = model, model.tokenizer, seed
        self.scorer = Scorer(model, batch_size=_batch_size(batch_size))

    @property
    def tokenizer_name(self) -> str:
        """What lm_eval tells the requests that it keeps by."""
        return self.tokenizer.hash

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns (log-likelihood, whether greedy decoding would write it) of each continuation of a context."""
        pairs, cut = [], 0
        for context, continuation in (request.args for request in requests):
            *pair, lost = self.scorer.fit(*encode_pair(self.tokenizer, context, continuation))
            pairs.append((pair[0], pair[1]))
            cut += lost > 0
        _tell_cut(cut, len(requests), self.model.window)
        with _bar(len(pairs), "loglikelihood", disable_tqdm) as bar:
            found = [(one.logprob, one.greedy) for one in self.scorer.score(pairs, progress=bar.update)]
        for request, result in zip(requests, found):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text, every token scored once, in windows that follow one another."""
        texts = [encode_text(self.tokenizer, request.args[0]) for request in requests]
        rows = [(number, *row) for number, ids in enumerate(texts)
                for row in windows(len(ids), self.model.window, self.model.window)]
        with _bar(len(rows), "loglikelihood_rolling", disable_tqdm) as bar:
            readings = self.scorer.read([texts[number][begin:end] for number, begin, end, _ in rows],
                                        progress=bar.update)
        sums = [0.0] * len(texts)
        for (number, begin, _, first), reading in zip(rows, readings):
            sums[number] += float(reading.logprob[1][first - begin - 1:].sum(dtype=np.float64))
        for request, result in zip(requests, sums):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns what the model writes behind each context, up to a stop sequence."""
        found, cut = [""] * len(requests), 0
        rows: list[np.ndarray] = []
        groups: dict[str, tuple[Drawing, list[int]]] = {}
        for number, (context, settings) in enumerate(request.args for request in requests):
            drawing = _drawing(settings, self.model.window)
            ids = encode_text(self.tokenizer, context)
            most = self.model.window - drawing.max_new_tokens
            cut += len(ids) > most
            rows.append(ids[-most:])
            groups.setdefault(json.dumps([drawing.__dict__], sort_keys=True), (drawing, []))[1].append(number)
        _tell_cut(cut, len(requests), self.model.window)
        size, batches = self.scorer.batch_size, 0
        with _bar(len(rows), "generate_until", disable_tqdm) as bar:
            for drawing, numbers in groups.values():
                numbers = sorted(numbers, key=lambda number: -len(rows[number]))
                for start in range(0, len(numbers), size):
                    batch = numbers[start:start + size]
                    texts, _ = run_batch(self.model, self.tokenizer, [rows[number] for number in batch],
                                         drawing.temperatures[0], drawing, size if len(numbers) > size else len(batch),
                                         seed=batch_seed(self.seed, batches))
                    batches += 1
                    for number, text in zip(batch, texts):
                        found[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(batch))
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Raises ValueError: our runs have no chat template."""
        raise ValueError("Runs of mtp_jax have no chat template: leave --apply_chat_template out.")


def _batch_size(given: int | str | None) -> int:
    """Returns the rows of a batch."""
    if given is None or str(given).startswith("auto"):
        return BATCH
    if not str(given).isdecimal():
        raise ValueError(f"batch_size={given!r} must be a whole number of rows, or auto.")
    return int(given)


def _drawing(settings: Mapping[str, Any], window: int) -> Drawing:
    """Returns how a request wants its text drawn.

    Raises:
      ValueError: a setting is unknown here, or the new tokens leave no room for a context.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    until = given.pop("until", [])
    lengths = [given.pop(name) for name in _LENGTHS if name in given]
    temperature, sample = float(given.pop("temperature", 0.0)), given.pop("do_sample", None)
    temperature = 0.0 if sample is False else temperature
    top_p = float(given.pop("top_p", 1.0))
    if not temperature:
        given = {name: value for name, value in given.items() if name not in _IDLE_WHEN_GREEDY}
    if given:
        raise ValueError(f"The task asks for text with {', '.join(sorted(given))}, which mtp_jax does not draw by: it "
                         f"knows until, do_sample, temperature, top_p and {_LENGTHS[0]}. Leave them out of the task's "
                         "generation_kwargs or --gen_kwargs.")
    length = int(lengths[0]) if lengths else min(NEW_TOKENS, window // 2)
    if not 0 < length < window:
        raise ValueError(f"{_LENGTHS[0]}={length} must be at least 1 and below the window of {window} tokens, which "
                         f"holds a context too: give --gen_kwargs {_LENGTHS[0]}={max(1, window // 2)}, or "
                         "--model_args window=N beyond what the model was trained on.")
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    return Drawing((temperature,), 1, top_p if temperature else 1.0, length, stop)


def _tell_cut(cut: int, total: int, window: int) -> None:
    """Tells how many requests lost their beginning."""
    if cut:
        logging.warning("%d of %d requests are longer than the window of %d tokens: their first tokens are cut off.",
                        cut, total, window)


def _bar(total: int, what: str, disable: bool) -> Any:
    """Returns a tqdm bar."""
    from tqdm import tqdm

    return tqdm(total=total, desc=what, disable=disable)


def main() -> None:
    """Runs lm_eval's own command with our model."""
    from lm_eval.__main__ import cli_evaluate

    given = sys.argv[1:]
    named = {text.split("=")[0] for text in given}
    if given and given[0] not in ("ls", "validate") and not {"-h", "--help"} & named:
        command = [given.pop(0)] if given[0] == "run" else []
        extra = [] if {"--model", "-M"} & named else ["--model", "mtp_jax"]
        extra += [] if {"--batch_size", "-b", "--config", "-C"} & named else ["--batch_size", str(BATCH)]
        given = [*command, *extra, *given]
    sys.argv = ["lm_eval", *given]
    try:
        cli_evaluate()
    except (ValueError, CheckpointError) as error:
        sys.exit(f"ERROR: {error}")


if __name__ == "__main__":
    main()
