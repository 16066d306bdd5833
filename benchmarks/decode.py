"""Greedy decoding with 1 to n heads: tokens per forward, speed beside one head, and what the loop adds to the forwards.

    python -m benchmarks.decode --workdir=DIR [--workdir=DIR2] [--output=FILE.jsonl] [--quick]
    python -m benchmarks.decode --results=FILE.jsonl --plot=docs/img/decode.png

Prompts of 128 tokens from three kinds of text that the run has not seen (its held-out files, HumanEval, fairy tales)
are continued by 128 tokens, no token stops. All k (and a few trees, where the workdir has a calibration) take turns on
the same prompts, round by round; a ratio is the median over rounds, its interval a bootstrap of it. Compiling and
loading are left out, the prompt's forward is not. Prints one JSON line a case:

"decode": tokens per forward; acceptance, the share of blocks in which the first 1, 2, .. drafts were accepted; seconds
per block of the whole batch (the loop alone); the speedup over k = 1; `depth_share`, (layers - n + 1) / (layers - n +
k), what the extra heads' layers alone would leave of the tokens per forward; the paper's figures where it used as many
heads. `same_as_one_head` counts rows whose tokens are those of k = 1.

"decode_loop": seconds per block over the seconds of the same forwards alone (`benchmarks._bare_forward`), both in turns
in the same run. Target: at most 1.10.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from mtp_jax.parallel.host_memory import keep_freed_memory

keep_freed_memory()  # as the command does, before JAX starts its threads

import jax  # noqa: E402

from benchmarks._bare_forward import BareForward  # noqa: E402
from benchmarks._beside import interval  # noqa: E402
from benchmarks._prompts import prompts_by_text  # noqa: E402
from mtp_jax.analysis.decode_plot import paper_figures, plot  # noqa: E402
from mtp_jax.decoding import DecodingModel, Generation, Tree, calibration, generate  # noqa: E402
from mtp_jax.decoding.generate import room  # noqa: E402
from mtp_jax.decoding.load import load_model  # noqa: E402
from mtp_jax.parallel.compile_cache import set_compile_cache  # noqa: E402

DATA = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"
WINDOW = 512  # tokens of context; a run of shorter rows decodes within these
DEFAULT_RUNS = (pathlib.Path("runs/decode_4"), pathlib.Path("runs/decode_8"))
TREE_NODES = (8, 16)
PROMPTS = 32  # of each kind of text


def main(argv: Sequence[str]) -> None:
    """Prints every case, or draws the results of an earlier run."""
    options = _options(argv)
    if options.plot:
        lines = options.results.read_text().splitlines()
        print(plot([json.loads(line) for line in lines], options.plot))
        return
    workdirs = options.workdir or [path for path in DEFAULT_RUNS if path.exists()]
    if not workdirs:
        print("note: decode needs trained runs: --workdir=DIR. docs/benchmarks.md says how those of its figures were "
              "trained.", file=sys.stderr)
    set_compile_cache("auto")
    with (options.output.open("w") if options.output else open("/dev/null", "w")) as output:
        for workdir in workdirs:
            for record in measure(workdir, options):
                _write(record, output)


def _write(record: dict[str, Any], output: TextIO) -> None:
    line = json.dumps(record)
    print(line, flush=True)
    print(line, file=output, flush=True)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workdir", action="append", type=pathlib.Path, help="a trained run; may be repeated")
    parser.add_argument("--output", type=pathlib.Path, help="file for the lines, beside stdout")
    parser.add_argument("--plot", help="draw --results to this PNG instead of measuring")
    parser.add_argument("--results", type=pathlib.Path, help="file that --output wrote")
    parser.add_argument("--humaneval", type=pathlib.Path, default=DATA / "humaneval" / "HumanEval.jsonl.gz")
    parser.add_argument("--stories", type=pathlib.Path, default=DATA / "childrens_stories" / "test.jsonl")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to continue it by")
    parser.add_argument("--batch", action="append", type=int, help="rows at a time; may be repeated (default 1, 8, 32)")
    parser.add_argument("--rounds", type=int, help="rounds of each case (default 12, 5 and 2)")
    parser.add_argument("--quick", action="store_true", help="batch 1 and two rounds, to try it out")
    options = parser.parse_args(argv)
    if bool(options.plot) != bool(options.results):
        parser.error("--plot and --results go together: a file of lines, and the picture to draw of them")
    options.batch = options.batch or ([1] if options.quick else [1, 8, 32])
    return options


def rounds_of(batch: int, options: argparse.Namespace) -> int:
    """Returns the number of rounds: fewer for larger batches, whose seconds vary less and whose rows are many."""
    return options.rounds or (2 if options.quick else 12 if batch == 1 else 5 if batch <= 8 else 2)


def measure(workdir: pathlib.Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the records of one run."""
    prompts = prompts_by_text(workdir, humaneval=options.humaneval, stories=options.stories,
                              count=max(PROMPTS, *options.batch), length=options.prompt)
    model = load_model(workdir, window=max(WINDOW, options.prompt + options.new))
    facts = {"workdir": workdir.name, "step": model.step, "num_heads": model.config.num_heads,
             "num_layers": model.config.num_layers, "d_model": model.config.d_model, "dtype": model.config.dtype,
             "prompt_tokens": options.prompt, "new_tokens": options.new, "device": model.platform,
             "jax": jax.__version__}
    for batch in options.batch:
        trees = trees_of(workdir, model, batch)
        bare = {tree: bare_forward(model, tree, batch, options) for tree in trees}
        for text, rows in prompts.items():
            groups = [rows[i:i + batch] for i in range(0, len(rows) - batch + 1, batch)]
            rounds = [one_round(model, groups[number % len(groups)], trees, bare, options.new, number)
                      for number in range(-1, rounds_of(batch, options))][1:]  # the first, which compiles, is dropped
            for fields in records(model, trees, rounds, distinct=len(groups)):
                yield {"benchmark": fields.pop("benchmark"), **facts, "text": text, "batch": batch, **fields}
            bare = {}  # what a forward costs does not depend on the text


def trees_of(workdir: pathlib.Path, model: DecodingModel, batch: int) -> list[Tree]:
    """Returns the chains, k = 1 first, and for one row trees by the workdir's calibration, if there is one."""
    most = model.config.num_heads
    trees = [Tree.chain(k) for k in range(1, most + 1)]
    if batch > 1 or not (workdir / calibration.FILE).exists():
        return trees
    accuracy = calibration.load(workdir, model).accuracy
    return trees + [Tree.prune(accuracy, nodes) for nodes in TREE_NODES]


def bare_forward(model: DecodingModel, tree: Tree, batch: int, options: argparse.Namespace) -> BareForward:
    """Returns the forward that `generate` runs for these prompts, with its cache half way between first and last."""
    capacity = room(model, min(options.prompt + options.new, model.window), tree.heads)
    return BareForward(model, tree, batch=batch, capacity=capacity, filled=options.prompt + options.new // 2)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One tree's turn in a round.

    Attributes:
      result: of generating.
      block_seconds: of one block of the batch, in the loop.
      bare_seconds: of one bare forward; None where it was not timed.
    """

    result: Generation
    block_seconds: float
    bare_seconds: float | None


def one_round(model: DecodingModel, rows: np.ndarray, trees: list[Tree], bare: dict[Tree, BareForward], new: int,
              number: int) -> dict[Tree, Turn]:
    """Gives every tree a turn on the same prompts; who begins changes from round to round."""
    turns = {}
    for tree in [*trees[number % len(trees):], *trees[:number % len(trees)]]:
        result = generate(model, list(rows), max_new_tokens=new, tree=tree, stop=())
        if set(result.lengths) != {new}:
            raise RuntimeError(f"Rows have {sorted(set(result.lengths))} new tokens instead of {new}.")
        blocks = int(result.blocks.max())
        turns[tree] = Turn(result, (result.seconds - result.prompt_seconds) / blocks,
                           bare[tree].seconds(blocks) if bare else None)
    return turns


def records(model: DecodingModel, trees: list[Tree], rounds: list[dict[Tree, Turn]], *, distinct: int
            ) -> Iterator[dict[str, Any]]:
    """Yields what the rounds say of each tree.

    Args:
      model: the model.
      trees: one head alone is the first.
      rounds: the turns.
      distinct: after so many rounds the prompts come again: tokens are counted up to there.
    """
    n, layers = model.config.num_heads, model.config.num_layers
    for tree in trees:
        turns, ones = [turns[tree] for turns in rounds], [turns[trees[0]] for turns in rounds]
        results = [turn.result for turn in turns[:distinct]]
        same = sum(int(np.array_equal(row, other)) for turn, one in zip(turns[:distinct], ones)
                   for row, other in zip(turn.result.tokens, one.result.tokens))
        blocks = sum(int(result.blocks.sum()) for result in results)
        shape = {"k": tree.heads, "tree": None if tree.is_chain else list(tree.parents), "nodes": tree.size,
                 "rounds": len(rounds)}
        speedup = np.array([one.result.seconds / turn.result.seconds for one, turn in zip(ones, turns)])
        yield {
            "benchmark": "decode", **shape, "prompts": sum(len(result.tokens) for result in results),
            "tokens_per_forward": _round(sum(int(result.produced.sum()) for result in results)
                                         / sum(int(result.forwards.sum()) for result in results)),
            "acceptance": [_round(count / blocks) for count in sum(result.accepted.sum(axis=0) for result in results)],
            "ms_per_block": _round(1e3 * float(np.median([turn.block_seconds for turn in turns]))),
            "tokens_per_second": round(float(np.median([turn.result.tokens_per_second for turn in turns]))),
            "speedup": _round(float(np.median(speedup))), "speedup_90": [_round(x) for x in interval(speedup)],
            "depth_share": _round((layers - n + 1) / (layers - n + tree.heads)), "same_as_one_head": same,
            "paper": paper_figures(n, tree.heads) if tree.is_chain else []}
        if turns[0].bare_seconds is not None:
            over = np.array([turn.block_seconds / turn.bare_seconds for turn in turns])
            yield {
                "benchmark": "decode_loop", **shape,
                "ms_per_block": _round(1e3 * float(np.median([turn.block_seconds for turn in turns]))),
                "bare_ms": _round(1e3 * float(np.median([turn.bare_seconds for turn in turns]))),
                "overhead": _round(float(np.median(over))), "overhead_90": [_round(x) for x in interval(over)],
                "target": 1.10}


def _round(value: float) -> float:
    return round(float(value), 3)


if __name__ == "__main__":
    main(sys.argv[1:])
