"""Information (section 5.2): what the next two tokens tell of each other under a model, and what head 2 makes of it.

At positions c drawn from a text, head 1 gives the joint distribution q(x, y | c) = q(x | c) q(y | c, x) of the next two
tokens. By its sums over x and y, all in nats and averaged over positions:

    entropy_x, entropy_y            H(X), H(Y): of the model's own distributions
    mutual_information              I(X;Y) of the model's own joint
    loss_x, loss_y_given_x          on the text: head 1's, as it is trained
    loss_y, loss_x_given_y          on the text: by the sums of the joint
    relative_information            loss_y - loss_y_given_x, an estimate of I_p||q of Lemma L.3 with the text for p:
                                    what knowing x is worth for y, on the text
    head_2_loss                     head 2's, on y
    head_2_divergence               D(q(y | c) || head 2): how far head 2 is from what head 1 says two tokens ahead
    lemma                           largest of |loss_x + loss_y - (loss_x_given_y + 2 relative + loss_y_given_x)|

Exact where x runs over the whole vocabulary (--set=branches=0, up to 1,024 tokens). With fewer branches it runs over
the likeliest ones, as if there were no others; positions where the text goes on otherwise are left out; `covered` is
the share of q(x | c) that they have.
"""

from __future__ import annotations

import numpy as np

from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.task import Metrics, Result, Setting, Task
from mtp_jax.evaluation.theory.rows import SHORTEST, text_rows
from mtp_jax.evaluation.theory.two_tokens import next_two
from mtp_jax.intervals import bootstrap

MOST = 1024  # branches of one forward
NAMES = ("entropy_x", "entropy_y", "mutual_information", "loss_x", "loss_y_given_x", "loss_y", "loss_x_given_y",
         "relative_information", "head_2_loss", "head_2_divergence", "covered", "lemma")


class Information(Task):
    """Mutual information of the next two tokens."""

    name = "information"
    about = "What the next two tokens tell of each other under the model, and head 2 beside it (the paper's 5.2)."
    data_help = "optional, a text; left out: the run's own validation data"
    settings = (Setting("positions", 512, "Positions to look at, one or more a row of text."),
                Setting("branches", 0, "Next tokens to look at, the likeliest; 0: the whole vocabulary, exact."))

    def run(self, request: Request) -> Result:
        """Looks at the positions."""
        model = request.model
        count, branches = request.config.limit or int(request.option("positions")), int(request.option("branches"))
        if count < 1:
            raise ValueError(f"--set=positions={count} must be at least 1.")
        branches = branches or (model.config.vocab_size or 0)
        if not 2 <= branches <= min(MOST, model.config.vocab_size or 0):
            raise ValueError(f"--set=branches={branches} must lie in 2..{min(MOST, model.config.vocab_size or 0)}"
                             f"{': the vocabulary is too large to be looked at whole' if branches > MOST else ''}.")
        positions = draw_positions(text_rows(request, count), count, model.window, request.config.seed)
        found: list[dict[str, float]] = []
        size = max(1, request.config.batch_size // 8)  # each row has a block as wide as the vocabulary
        with request.progress(len(positions), "positions") as bar:
            for start in range(0, len(positions), size):
                some = positions[start:start + size]
                padded = some + some[-1:] * (size - len(some))  # one shape, one program
                two = next_two(model, [row[:end] for row, end in padded], branches=branches)
                for b, (row, end) in enumerate(some):
                    ahead = None if two.ahead_BxV is None else two.ahead_BxV[b]
                    found.append(at_position(two.first_BxV[b], two.tokens_BxK[b], two.second_BxKxV[b], ahead,
                                             int(row[end]), int(row[end + 1])))
                bar.update(len(some))
        used = [one for one in found if one]
        if not used:
            raise ValueError("At no position was the text's next token among the branches: raise --set=branches.")
        values = {name: float(np.mean([one[name] for one in used])) for name in NAMES if name in used[0]}
        values["lemma"] = max(one["lemma"] for one in used)
        intervals = {name: bootstrap([one[name] for one in used], seed=request.config.seed) for name in values
                     if name != "lemma"}
        samples = [{"task_id": f"position {number}", **one} for number, one in enumerate(found)]
        return Result(self.name, Metrics({**values, "positions": len(used)}, intervals), samples,
                      {"positions": len(positions), "branches": branches, "n": model.config.num_heads,
                       **request.settings()})


def draw_positions(rows: list[np.ndarray], count: int, window: int, seed: int) -> list[tuple[np.ndarray, int]]:
    """Returns (row, tokens of context) of places with two tokens behind them, spread evenly over the rows.

    Args:
      rows: ids.
      count: of places; fewer where the rows have fewer.
      window: of the model, which must hold context and one more.
      seed: of the draws.
    """
    random = np.random.default_rng(seed)
    places = [random.permutation(np.arange(SHORTEST // 2, min(len(row) - 1, window))) for row in rows]
    found = []
    for turn in range(max(map(len, places), default=0)):
        found += [(row, int(ends[turn])) for row, ends in zip(rows, places) if turn < len(ends)]
        if len(found) >= count:
            break
    return found[:count]


def at_position(first_V: np.ndarray, tokens_K: np.ndarray, second_KxV: np.ndarray, ahead_V: np.ndarray | None, x: int,
                y: int) -> dict[str, float]:
    """Returns the numbers of one position; none where x is not among the branches.

    Args:
      first_V: log q(x | c).
      tokens_K: the branches.
      second_KxV: log q(y | c, x) of each.
      ahead_V: log probabilities of head 2; None: there is none.
      x: the text's next token.
      y: the one after it.
    """
    place = np.flatnonzero(tokens_K == x)
    if not len(place):
        return {}
    log_x = np.asarray(first_V, np.float64)[tokens_K]
    covered = _log_sum(log_x, axis=0)
    log_x -= covered
    log_joint = log_x[:, None] + np.asarray(second_KxV, np.float64)
    log_joint -= _log_sum(_log_sum(log_joint, axis=1), axis=0)  # what rounding left
    log_x, log_y = _log_sum(log_joint, axis=1), _log_sum(log_joint, axis=0)
    joint, i = np.exp(log_joint), int(place[0])
    with np.errstate(invalid="ignore"):  # a joint of 0 adds 0, whatever its logarithm is
        shared = joint * (log_joint - log_x[:, None] - log_y[None])
    found = {"entropy_x": _entropy(log_x), "entropy_y": _entropy(log_y),
             "mutual_information": float(np.nansum(shared)), "covered": float(np.exp(covered)),
             "loss_x": float(-log_x[i]), "loss_y": float(-log_y[y]),
             "loss_y_given_x": float(log_x[i] - log_joint[i, y]), "loss_x_given_y": float(log_y[y] - log_joint[i, y])}
    found["relative_information"] = float(log_joint[i, y] - log_x[i] - log_y[y])
    found["lemma"] = abs(found["loss_x"] + found["loss_y"] - found["loss_x_given_y"] - found["loss_y_given_x"]
                         - 2 * found["relative_information"])
    if ahead_V is not None:
        ahead_V = np.asarray(ahead_V, np.float64)
        there = np.exp(log_y) > 0
        found["head_2_loss"] = float(-ahead_V[y])
        found["head_2_divergence"] = float(np.sum(np.exp(log_y[there]) * (log_y[there] - ahead_V[there])))
    return found


def _log_sum(values: np.ndarray, *, axis: int) -> np.ndarray:
    """Returns the logarithm of the sum of exponentials."""
    return np.logaddexp.reduce(values, axis=axis)


def _entropy(log_p: np.ndarray) -> float:
    """Returns the entropy of log probabilities."""
    p = np.exp(log_p)
    return float(-np.sum(p[p > 0] * log_p[p > 0]))


TASK = Information()
