"""How often the heads' candidates are what head 1 goes on to say, and the file beside the checkpoints that says so."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from etils import epath

import mtp_jax
from mtp_jax.decoding.tree import Tree

if TYPE_CHECKING:
    from mtp_jax.decoding.generate import DecodingModel

FILE = "calibration.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What greedy decoding met on a text.

    Position p of a row is a place where a block of drafts may start: the states of heads 2..N there make the drafts.
    ranks[p, d - 1] is the rank, among the logits of head d + 1 there, of the token that head 1 then put d places after
    the one it chose at p itself. 0 is the head's first candidate, `ranks` stands for `ranks` and all after.

    Positions are in the order of the text, since blocks do not start everywhere: after a block of many accepted drafts
    the next one starts further on, so stretches that are hard to guess hold more blocks than easy ones, and an average
    over all positions promises more tokens per forward than decoding gives. `expected_tokens` therefore walks from
    block to block as decoding does; `accuracy` and `expected_tokens_anywhere` are averages over all positions.

    Attributes:
      heads: N.
      ranks: candidates told apart.
      rows: one array [positions, N - 1] a continuation, uint8.
      step: of the checkpoint, or None.
      tokenizer: hash of the tokenizer, or None.
      text: name of the text.
      text_hash: SHA-256 of the text.
      prompt_tokens: tokens of the longest prompt, BOS included.
      new_tokens: tokens that each prompt was continued by, at most.
      costs: {conditions: {tree: seconds per forward}}, what `auto` has measured.
    """

    heads: int
    ranks: int
    rows: tuple[np.ndarray, ...]
    step: int | None = None
    tokenizer: str | None = None
    text: str = ""
    text_hash: str = ""
    prompt_tokens: int = 0
    new_tokens: int = 0
    costs: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    @property
    def positions(self) -> int:
        """Number of positions measured."""
        return sum(map(len, self.rows))

    @functools.cached_property
    def _all_PxJ(self) -> np.ndarray:
        """The ranks of all rows, one after the other."""
        return np.concatenate(self.rows) if self.rows else np.zeros((0, self.heads - 1), np.uint8)

    @property
    def accuracy(self) -> list[list[float]]:
        """Share of positions at which rank r of head d + 1 was what head 1 then said: accuracy[d - 1][r]."""
        return [(np.bincount(column, minlength=self.ranks + 1)[:self.ranks] / self.positions).tolist()
                for column in self._all_PxJ.T]

    def expected_tokens(self, tree: Tree) -> float:
        """Returns the tokens per forward of greedy decoding with `tree` on the measured text.

        Exact there: it is what a run from the same prompts makes of the measured positions, the prompt's own forward
        and the last block of a row, which a limit may cut, left out.

        Raises:
          ValueError: the tree needs more heads or candidates than were measured.
        """
        tokens = blocks = 0
        for row in self.rows:
            advances = 1 + self._accepted(row, tree)
            position = 0
            while position < len(row):
                tokens, blocks = tokens + advances[position], blocks + 1
                position += advances[position]
        return float(tokens / blocks)

    def expected_tokens_anywhere(self, tree: Tree) -> float:
        """Returns the tokens of a block that starts at any measured position, all being equally likely.

        It equals 1 + the sum over the nodes of the share of positions that have the node's path of ranks.

        Raises:
          ValueError: the tree needs more heads or candidates than were measured.
        """
        return float(1 + self._accepted(self._all_PxJ, tree).mean())

    def _accepted(self, ranks_PxJ: np.ndarray, tree: Tree) -> np.ndarray:
        """Returns how many drafts of the tree are accepted at each position, [P]."""
        if tree.heads > self.heads or max(tree.ranks) >= self.ranks:
            raise ValueError(f"A tree of {tree.heads} heads and rank {max(tree.ranks)} is beyond this calibration of "
                             f"{self.heads} heads and ranks below {self.ranks}.")
        met_QxP = np.ones((tree.size, len(ranks_PxJ)), bool)
        depth_P = np.zeros(len(ranks_PxJ), int)
        for node in range(1, tree.size):
            depth = tree.depths[node]
            met_QxP[node] = met_QxP[tree.parents[node]] & (ranks_PxJ[:, depth - 1] == tree.ranks[node])
            depth_P = np.maximum(depth_P, depth * met_QxP[node])
        return depth_P


def save(calibration: Calibration, workdir: str | epath.Path) -> epath.Path:
    """Writes <workdir>/calibration.json, whole or not at all, and returns its path.

    Raises:
      ValueError: it cannot be written.
    """
    path = epath.Path(workdir) / FILE
    fields = {field.name: getattr(calibration, field.name) for field in dataclasses.fields(calibration)}
    facts = {"format": FORMAT, "mtp_jax": mtp_jax.__version__, "temperature": 0, **fields,
             "rows": [row.tolist() for row in calibration.rows]}
    # One line a field: thousands of ranks would else take a line each.
    text = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items())
    target = path if "://" in str(path) else path.with_name(FILE + ".tmp")  # in a bucket an object appears when whole
    try:
        target.write_text(f"{{\n{text}\n}}\n")
        if target != path:
            target.replace(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}): make room or write access, or copy "
                         "the workdir to where there is.") from error
    return path


def load(workdir: str | epath.Path, model: DecodingModel) -> Calibration:
    """Reads <workdir>/calibration.json and checks that it was measured on this model.

    Another checkpoint of it is warned of; its figures are near enough to choose by.

    Raises:
      ValueError: there is none, it cannot be read, is damaged or of another format, model or tokenizer.
    """
    path = epath.Path(workdir) / FILE
    remedy = f"python -m mtp_jax.generate --workdir={workdir} --calibrate=TEXT measures it anew."
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"There is no {path}: {remedy}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise ValueError(f"{path} has format {found!r}, this version of mtp_jax reads {FORMAT}: {remedy}")
    calibration = _parse(facts, path, remedy)
    own = model.tokenizer and model.tokenizer.hash
    if calibration.heads != model.config.num_heads:
        raise ValueError(f"{path} is of a model of {calibration.heads} heads, this one has {model.config.num_heads}: "
                         f"{remedy}")
    if own and calibration.tokenizer and own != calibration.tokenizer:
        raise ValueError(f"{path} was measured with the tokenizer {calibration.tokenizer[:12]}, this one is "
                         f"{own[:12]}: {remedy}")
    if calibration.step != model.step:
        logging.warning("%s was measured at step %s, this is step %s: %s", path, calibration.step, model.step, remedy)
    return calibration


def _parse(facts: Mapping[str, Any], path: epath.Path, remedy: str) -> Calibration:
    """Returns the calibration that a file holds; raises ValueError where a field is missing or impossible."""
    kinds: dict[str, Any] = {"heads": int, "ranks": int, "rows": list, "step": (int, type(None)),
                             "tokenizer": (str, type(None)), "text": str, "text_hash": str, "prompt_tokens": int,
                             "new_tokens": int, "costs": dict}
    for name, kind in kinds.items():
        if name not in facts or not isinstance(facts[name], kind):
            raise ValueError(f"{path} is damaged (no usable field {name!r}): {remedy}")
    heads, ranks = facts["heads"], facts["ranks"]
    try:
        rows = tuple(np.array(row, np.uint8) for row in facts["rows"])
        costs = {conditions: {tree: float(seconds) for tree, seconds in table.items()}
                 for conditions, table in facts["costs"].items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    fit = heads > 1 and 1 <= ranks < 256 and rows and all(
        row.ndim == 2 and row.shape[1] == heads - 1 and len(row) and row.max() <= ranks for row in rows)
    if not fit or not all(0 < seconds < np.inf for table in costs.values() for seconds in table.values()):
        raise ValueError(f"{path} is damaged (its ranks or costs are impossible): {remedy}")
    return Calibration(**{**{name: facts[name] for name in kinds}, "rows": rows, "costs": costs})
