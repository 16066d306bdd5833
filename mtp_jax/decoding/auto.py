"""The draft length that pays: tokens per forward from the calibration, seconds per forward from this machine."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath

from mtp_jax.decoding.calibrate import FILE, Calibration, calibrate_on, load, save
from mtp_jax.decoding.generate import (
    STOP_IDS,
    DecodingModel,
    Prompts,
    bucket,
    compiled,
    encode,
    make_request,
    room,
    row_limits,
)
from mtp_jax.decoding.sampling import GREEDY, LOSSLESS, TYPICAL, Sampling, make_sampling
from mtp_jax.decoding.tree import Tree
from mtp_jax.model import get_head_kind

BUDGETS = (8, 16, 32, 64)  # nodes
SLICE = 0.05  # seconds that one reading of a clock takes, about
SLACK = 2 / 3  # a compiler takes other kernels for other sizes: four rows were seen to cost 0.7 of three
NEAR = 0.9  # of the best rate: what comes as near is measured again, side by side

Cost = Callable[[Sequence[Tree]], list[float]]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to draft.

    Attributes:
      tree: what a block is made of.
      tokens_per_forward: a row's, on the calibration text, greedy.
      seconds_per_forward: of one block of the whole batch; None where even the cost of a smaller block, which has been
        measured, would not let it win.
    """

    tree: Tree
    tokens_per_forward: float
    seconds_per_forward: float | None


@dataclasses.dataclass(frozen=True)
class Choice:
    """The way to draft that makes the most tokens per second.

    Attributes:
      tree: what a block is made of; `tree.heads` is k.
      batch: rows decoded together.
      tokens_per_forward: a row's, predicted.
      seconds_per_forward: of the whole batch, measured.
      tokens_per_second: of all rows together, predicted.
      table: all candidates, chains first.
      text: what the calibration was measured on.
    """

    tree: Tree
    batch: int
    tokens_per_forward: float
    seconds_per_forward: float
    tokens_per_second: float
    table: tuple[Candidate, ...]
    text: str = ""

    @property
    def heads(self) -> int:
        """k, the heads in use."""
        return self.tree.heads


def candidates(calibration: Calibration, heads: int, *, branches: bool = True) -> list[Tree]:
    """Returns the ways to draft that are compared: chains of 1..heads, then, unless the kind of heads can only make
    chains (`branches`), trees of several sizes for each length."""
    chains = [Tree.chain(k) for k in range(1, heads + 1)]
    if not branches:
        return chains
    trees = {Tree.prune(calibration.accuracy[:k - 1], nodes)
             for k in range(2, heads + 1) for nodes in (k + 2, *BUDGETS) if nodes > k}
    return chains + sorted(trees.difference(chains), key=lambda tree: (tree.heads, tree.size, tree.parents))


def choose(calibration: Calibration, cost: Cost, *, heads: int, batch: int = 1,
           known: dict[Tree, float] | None = None, branches: bool = True) -> Choice:
    """Chooses the candidate with the most tokens per second.

    A candidate is left unmeasured where it could not win even at `SLACK` times the cost of the dearest smaller block
    that has been measured (as many nodes and heads or fewer). What comes near to the best is measured again, beside one
    head alone.

    The tokens per forward are those of greedy decoding; sampling accepts other shares.

    Args:
      calibration: of the model.
      cost: returns the seconds per forward of each of some trees, timed side by side.
      heads: how many may be used.
      batch: rows decoded together.
      known: {tree: seconds per forward} already measured here; what is measured is added to it.
      branches: whether trees are among the candidates.
    """
    trees = candidates(calibration, heads, branches=branches)
    tokens = {tree: calibration.expected_tokens(tree) for tree in trees}
    seconds = {} if known is None else known
    before = set(seconds)
    _measure_what_may_win(tokens, seconds, cost)
    if set(seconds) != before:
        best = max(_rates(tokens, seconds).values())
        near = [tree for tree, rate in _rates(tokens, seconds).items() if rate >= NEAR * best or tree.size == 1]
        if len(near) > 1:
            seconds.update(zip(near, cost(near)))
            _measure_what_may_win(tokens, seconds, cost)
    rates = _rates(tokens, seconds)
    tree = max(rates, key=lambda tree: rates[tree])
    return Choice(tree, batch, tokens[tree], seconds[tree], batch * rates[tree],
                  tuple(Candidate(tree, tokens[tree], seconds.get(tree)) for tree in trees), calibration.text)


def _rates(tokens: dict[Tree, float], seconds: dict[Tree, float]) -> dict[Tree, float]:
    """Returns the tokens per second of a row, of every candidate that has been measured."""
    return {tree: tokens[tree] / seconds[tree] for tree in tokens if tree in seconds}


def _measure_what_may_win(tokens: dict[Tree, float], seconds: dict[Tree, float], cost: Cost) -> None:
    """Measures candidates until none that is left can win, those first that look best."""
    alone, longest = Tree.chain(1), Tree.chain(max(tree.heads for tree in tokens))
    first = [tree for tree in dict.fromkeys((alone, longest)) if tree not in seconds]
    if first:
        seconds.update(zip(first, cost(first)))
    while True:
        slope = (seconds[longest] - seconds[alone]) / max(1, longest.size - 1)  # per node, as a first guess
        best = max(_rates(tokens, seconds).values())
        promising = {}
        for tree in tokens:
            floor = SLACK * max(seconds[other] for other in tokens
                                if other in seconds and other.size <= tree.size and other.heads <= tree.heads)
            if tree not in seconds and tokens[tree] > best * floor:
                promising[tree] = tokens[tree] / max(floor, seconds[alone] + slope * (tree.size - 1))
        if not promising:
            return
        tree = max(promising, key=lambda tree: promising[tree])
        seconds[tree] = cost([tree])[0]


def measure(model: DecodingModel, trees: Sequence[Tree], *, batch: int, prompt_tokens: int, length: int,
            sampling: Sampling | None = None, rounds: int = 5) -> list[float]:
    """Times forwards of blocks, in the loop that `generate` runs and with its programs.

    Args:
      model: the model.
      trees: what to time, in turns.
      batch: rows, a multiple of `model.rows_multiple`.
      prompt_tokens: longest prompt to come; decides only which programs are compiled.
      length: tokens of the longest prompt and its continuation to come; the cache has room for them.
      sampling: how tokens are chosen; None: greedily.
      rounds: turns.

    Returns:
      Seconds a forward of the whole batch for each tree: the median over the rounds. Compiling does not count.
    """
    clocks = [_clock(model, tree, batch, prompt_tokens, length, sampling or make_sampling()) for tree in trees]
    times = [[clock() for clock in clocks] for _ in range(rounds)]
    return [float(np.median(column)) for column in zip(*times)]


def _clock(model: DecodingModel, tree: Tree, batch: int, prompt_tokens: int, length: int, sampling: Sampling
           ) -> Callable[[], float]:
    """Returns what runs some blocks and returns the seconds a block; compiled, and run once."""
    capacity = room(model, length, tree.heads)
    programs = compiled(model, tree, (batch, bucket(model, prompt_tokens)), capacity)
    request = make_request(sampling, np.full(batch, max(2, length - 1), np.int32),
                           np.full(STOP_IDS, -1, np.int32), 0, batch)
    tokens = np.zeros((batch, bucket(model, prompt_tokens)), np.int32)

    def run(blocks: int) -> float:
        """Runs at most so many: rows of accepted drafts may be full before."""
        state = programs.start(programs.weights, tokens, np.ones(batch, np.int32), request)
        jax.block_until_ready(state)
        clock = time.perf_counter()
        state = jax.block_until_ready(programs.run(programs.weights, state, request, np.int32(blocks)))
        return (time.perf_counter() - clock) / int(np.max(state.blocks_B))

    run(1)
    return functools.partial(run, max(1, round(SLICE / run(2))))


def choose_for(model: DecodingModel, prompts: Prompts, *, max_new_tokens: int,
               workdir: str | epath.Path | None = None, sampling: Sampling | None = None) -> Choice:
    """Chooses how to draft for these prompts on this machine.

    What the workdir's calibration says is used, and what is measured is kept in it, so that the next call for like
    prompts on a like machine is instant. Without one the model is calibrated on the prompts, which `Choice.text` says.

    Args:
      model: with all the heads that may be used.
      prompts: as for `generate`.
      max_new_tokens: as for `generate`.
      workdir: of the model; None: `model.source`.
      sampling: how tokens are chosen, which has a cost of its own; None: greedily.

    Raises:
      ValueError: the calibration does not fit the model or is damaged, or a prompt does not fit the window.
    """
    workdir = workdir or model.source
    rows = encode(model, prompts)
    row_limits(model, rows, max_new_tokens)  # says what does not fit
    longest = max(map(len, rows))
    batch = -(-len(rows) // model.rows_multiple) * model.rows_multiple
    length = min(longest + max_new_tokens, model.window)
    stored = bool(workdir) and model.heads > 1 and (epath.Path(workdir) / FILE).exists()
    if stored:
        calibration = load(workdir, model)
    elif model.heads == 1:
        calibration = Calibration(1, 1, (np.zeros((1, 0), np.uint8),), text="no drafts, for head 1 is alone")
    else:
        logging.info("The heads are calibrated on the prompts given, for %s has no %s; --calibrate=TEXT measures them "
                     "on more text and keeps the figures.", workdir or "the model", FILE)
        new = min(64, model.window // 2)
        calibration = calibrate_on(model, [row[-(model.window - new):].tolist() for row in rows[:16]],
                                   name="the prompts given", new_tokens=new)
    key = conditions(model, batch, length, sampling)
    kept = calibration.costs.get(key, {})
    branches = not get_head_kind(model.config.head_kind).in_turn
    known = {tree: kept[name] for tree in candidates(calibration, model.heads, branches=branches)
             for name in [tree_name(tree)] if name in kept}
    cost = functools.partial(measure, model, batch=batch, prompt_tokens=longest, length=length, sampling=sampling)
    before = dict(known)
    if not known:
        kept_how = ", once for such prompts; --calibrate=TEXT drops what is kept" if stored else ""
        logging.info("Timing what drafts cost on this machine%s.", kept_how)
    choice = choose(calibration, cost, heads=model.heads, batch=len(rows), known=known, branches=branches)
    if stored and known != before:
        costs = {**calibration.costs, key: {**kept, **{tree_name(tree): known[tree] for tree in known}}}
        try:
            save(dataclasses.replace(calibration, costs=costs), workdir)
        except ValueError as error:  # the choice stands; it is measured again next time
            logging.warning("%s", error)
    return choice


def conditions(model: DecodingModel, batch: int, length: int, sampling: Sampling | None = None) -> str:
    """Returns what the cost of a forward depends on besides the tree, as the key under which costs are kept."""
    sampling = sampling or make_sampling()
    sorts = ", sorted" if sampling.top_k > 0 or sampling.top_p < 1 else ""
    rule = {GREEDY: "greedy", LOSSLESS: "lossless", TYPICAL: "typical"}[int(sampling.rule)] + sorts
    devices = [jax.devices(model.platform)[0]] if model.layout is None else list(model.layout.mesh.devices.flat)
    loops = f", {model.config.loops} loops, exit {model.exit_threshold}" if model.config.loops > 1 else ""
    moved = "" if model.weights.redistribution is None else ", redistributed activations"
    mesh = "" if model.layout is None else f", {dict(model.layout.mesh.shape)}"
    return (f"{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, batch {batch}, "
            f"cache of {bucket(model, length + model.heads)}, {model.config.dtype}, {model.cache_dtype}, {rule}"
            f"{loops}{moved}{mesh}")


def tree_name(tree: Tree) -> str:
    """Returns a short text that tells trees apart: the parent of each node, and its rank."""
    return "chain" + str(tree.size) if tree.is_chain else " ".join(
        f"{parent}.{rank}" for parent, rank in zip(tree.parents[1:], tree.ranks[1:]))


def report(choice: Choice, *, temperature: float = 0.0) -> list[str]:
    """Returns the choice and what it was made from, as lines for a person.

    Args:
      choice: from `choose`.
      temperature: that will be decoded with.
    """
    rows = f"a batch of {choice.batch} rows" if choice.batch > 1 else "one row"
    lines = [f"Drafting with {choice.heads} heads, {choice.tree.size} tokens a block: the most tokens per second for "
             f"{rows}, as calibrated on {choice.text or 'a text'}.",
             "  heads  nodes  tokens/forward  ms/forward  tokens/s"]
    for row in choice.table:
        line = f"  {row.tree.heads:5}  {row.tree.size:5}  {row.tokens_per_forward:14.2f}  "
        if row.seconds_per_forward is None:
            lines.append(f"{line}{'-':>10}  {'-':>8}  cannot win")
            continue
        rate = choice.batch * row.tokens_per_forward / row.seconds_per_forward
        lines.append(f"{line}{1000 * row.seconds_per_forward:10.2f}  {rate:8.0f}"
                     f"{'  < chosen' if row.tree == choice.tree else ''}")
    if temperature > 0:
        lines.append("These figures are for greedy decoding; at temperature "
                     f"{temperature:g} other shares are accepted.")
    return lines
