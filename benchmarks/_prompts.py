"""Prompts of equal length that a trained run has not seen: its held-out side, HumanEval, fairy tales."""

from __future__ import annotations

import gzip
import json
import pathlib
import sys
from typing import Any

import numpy as np

from mtp_jax.data.corpus import open_corpus
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding.load import read_config


def prompts_by_text(workdir: pathlib.Path, *, humaneval: pathlib.Path, stories: pathlib.Path, count: int,
                    length: int) -> dict[str, np.ndarray]:
    """Returns {kind of text: prompts [count, length] of ids}; a kind whose file is absent is left out, with a note.

    Args:
      workdir: of the run whose tokenizer and held-out side are used.
      humaneval: HumanEval.jsonl.gz. Prompts are the ends of its prompts, so that a function body comes next.
      stories: JSONL with a field "text". Prompts begin at a place in each text that is drawn.
      count: prompts a kind.
      length: tokens of a prompt.

    Raises:
      ValueError: the corpus is not the run's, or a kind has fewer prompts than `count`.
    """
    config = read_config(workdir)
    corpus = open_corpus(config.data)
    if corpus.hash != json.loads((workdir / "config.json").read_text())["corpus_hash"]:
        raise ValueError(f"{workdir} was trained on another corpus than data.source={config.data.source!r} is here "
                         "(its hash differs; for stdlib: another Python), so nothing tells "
                         "which files it has not seen: train it on this machine.")
    found = {f"held-out {name} files": _rows(part.rows["validation"], count, length)
             for name, part in corpus.parts.items()}
    for name, path, read in (("HumanEval", humaneval, _ends), ("fairy tales", stories, _middles)):
        if path.exists():
            found[name] = read(path, corpus.tokenizer, count, length)
        else:
            print(f"note: {path} is not there, so nothing is measured on {name}.", file=sys.stderr)
    for name, prompts in found.items():
        if len(prompts) < count:
            raise ValueError(f"{name}: {len(prompts)} texts of {length} tokens or more, {count} are needed.")
    return {name: np.stack(prompts).astype(np.int32) for name, prompts in found.items()}


def _rows(rows: Any, count: int, length: int) -> list[np.ndarray]:
    """Returns the beginnings of rows, drawn among those that begin inside one document, as training sees them."""
    found: list[np.ndarray] = []
    for number in np.random.default_rng(0).permutation(len(rows)):
        row = rows[int(number)]
        if len(found) < count and len(row["tokens"]) >= length and len(set(row["segments"][:length])) == 1:
            found.append(row["tokens"][:length])
    return found


def _ends(path: pathlib.Path, tokenizer: Tokenizer, count: int, length: int) -> list[np.ndarray]:
    with gzip.open(path, "rt") as file:
        ids = [_begun(json.loads(line)["prompt"], tokenizer) for line in file]
    return _drawn([prompt[-length:] for prompt in ids if len(prompt) >= length], count)


def _middles(path: pathlib.Path, tokenizer: Tokenizer, count: int, length: int) -> list[np.ndarray]:
    """Returns stretches of texts, several of each where there are fewer texts than prompts."""
    generator = np.random.default_rng(0)
    texts = [_begun(json.loads(line)["text"], tokenizer) for line in path.read_text().splitlines()]
    texts = [ids for ids in texts if len(ids) >= 2 * length]
    places = [(ids, int(generator.integers(0, len(ids) - length)))
              for ids in texts for _ in range(-(-count // max(len(texts), 1)))]
    return _drawn([ids[place:place + length] for ids, place in places], count)


def _begun(text: str, tokenizer: Tokenizer) -> np.ndarray:
    return np.concatenate([[tokenizer.bos_id], tokenizer.encode(text.encode())])


def _drawn(prompts: list[np.ndarray], count: int) -> list[np.ndarray]:
    return [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))[:count]]
