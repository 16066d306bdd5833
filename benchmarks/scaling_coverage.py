"""Question: do the intervals of a scaling fit hold the true parameters as often as they say?

For each law: losses are drawn from known parameters, the law is fitted to them without knowing these, runs are
resampled, and it is counted how often the 95 % interval of each parameter holds the true value.

    python -m benchmarks.scaling_coverage [--laws=chinchilla,head_one] [--draws=100] [--resamples=400] [--starts=48]
    python -m benchmarks.scaling_coverage --laws=chinchilla --draws=40 --four_runs

The second asks how far off the intervals are with the points along four runs, one a size. Needs one core; the six laws
take about five minutes. Prints one JSON line a law: the share of draws whose interval holds the truth, a parameter
each, with the design (runs, points, noise) and the seconds of a fit and of a refit.

Noise: the log loss of a run is off by a normal error of its own (a seed's luck), and each of its points by another.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtp_jax.analysis.scaling.bootstrap import bootstrap
from mtp_jax.analysis.scaling.fit import STARTS, fit
from mtp_jax.analysis.scaling.laws import get_law
from mtp_jax.analysis.scaling.points import Points

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Design:
    """An experiment with known parameters.

    Attributes:
      truth: {parameter: value}.
      of_runs: {column: values}; each combination is `seeds` runs.
      within: {column: values}; each combination is a point of every run.
      seeds: runs a combination.
      run_noise: standard deviation of a run's error, of log loss.
      point_noise: that of a point's.
    """

    truth: Mapping[str, float]
    of_runs: Mapping[str, Sequence[float]]
    within: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    seeds: int = 1
    run_noise: float = 0.002
    point_noise: float = 0.001

    def grid(self) -> Points:
        """Returns its points, without losses."""
        rows = []
        for number, (_, *outer) in enumerate(itertools.product(range(self.seeds), *self.of_runs.values())):
            for inner in itertools.product(*self.within.values()):
                rows.append((f"run {number}", *outer, *inner))
        columns = dict(zip(("run", *self.of_runs, *self.within), map(np.asarray, zip(*rows))))
        if "share" in columns:  # of the parameters, that are run T times
            share = columns.pop("share")
            columns |= {"N_rec": columns["N"] * share, "N_once": columns["N"] * (1 - share)}
        return Points({**columns, "loss": np.ones(len(rows))})

    def draw(self, law: str, seed: int) -> Points:
        """Returns the points with losses of the law and noise."""
        grid, random = self.grid(), np.random.default_rng(seed)
        _, run = np.unique(grid["run"], return_inverse=True)
        error = random.normal(0, self.run_noise, run.max() + 1)[run] + random.normal(0, self.point_noise, len(grid))
        return Points({**grid.columns, "loss": get_law(law).predict(self.truth, grid) * np.exp(error)})


def spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """Returns sizes with equal ratios."""
    return tuple(np.geomspace(low, high, count).tolist())


_LOOPED = {"E": 1.7, "A": 2000.0, "B": 10000.0, "C": 1.0, "alpha": 0.5, "beta": 0.5, "gamma": 1.0,
           "t1": 2e6, "t2": 1e8, "t3": 1.0}

DESIGNS: dict[str, Design] = {
    "chinchilla": Design({"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37},
                         {"N": spaced(1e6, 1e10, 9), "D": spaced(1e8, 1e12, 9)}),
    "looped_total": Design(_LOOPED, {"N": spaced(3e5, 3e9, 8), "T": (1, 2, 3, 4, 6, 8, 12, 16)},
                           {"D": spaced(1e7, 1e12, 8)}),
    "looped_step": Design(_LOOPED, {"N": spaced(3e5, 3e9, 8)},
                          {"D": spaced(1e7, 1e12, 6), "loop": (1, 2, 3, 4, 6, 8)}, seeds=5),
    "iso_depth": Design({"E": 1.6, "A": 60.0, "B": 800.0, "alpha": 0.22, "beta": 0.36, "phi": 0.46},
                        {"N": spaced(1e6, 1e10, 6), "D": spaced(1e8, 1e12, 5), "T": (1, 2, 4, 8), "share": (0.8,)}),
    "per_head": Design({"E_1": 1.8, "E_2": 2.3, "E_3": 2.6, "E_4": 2.8, "A_1": 480.0, "A_2": 520.0, "A_3": 560.0,
                        "A_4": 580.0, "B_1": 2100.0, "B_2": 2300.0, "B_3": 2400.0, "B_4": 2450.0,
                        "alpha": 0.35, "beta": 0.37},
                       {"N": spaced(1e6, 1e10, 9), "D": spaced(1e8, 1e12, 9)}, {"head": (1, 2, 3, 4)}),
    "head_one": Design({"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37, "kappa": 0.1, "psi": 0.2},
                       {"N": spaced(1e6, 1e10, 6), "D": spaced(1e8, 1e12, 6), "n": (1, 2, 4, 8)}),
}

# What a small grid has: the losses along four runs.
FOUR_RUNS = Design(DESIGNS["chinchilla"].truth, {"N": spaced(3e5, 5e6, 4)}, {"D": spaced(2e6, 1e8, 11)}, run_noise=0.01)


def coverage(law: str, design: Design, *, draws: int, resamples: int, seed: int = 0,
             starts: int = STARTS) -> dict[str, Any]:
    """Returns {parameter: share of draws whose interval holds the truth}, with the design and what it took.

    Args:
      law: its name.
      design: the experiment.
      draws: experiments.
      resamples: of each one's runs.
      seed: experiment i has the seed 1000 seed + i.
      starts: of each fit.
    """
    held = dict.fromkeys(design.truth, 0)
    fitting = refitting = 0.0
    for number in range(draws):
        points = design.draw(law, 1000 * seed + number)
        begin = time.process_time()
        found = fit(law, points, starts=starts)
        middle = time.process_time()
        for name, (low, high) in bootstrap(found, points, draws=resamples, confidence=CONFIDENCE).items():
            held[name] += low <= design.truth[name] <= high
        fitting, refitting = fitting + middle - begin, refitting + time.process_time() - middle
    shares = {name: count / draws for name, count in held.items()}
    return {"law": law, **shares, "least": min(shares.values()), "draws": draws, "resamples": resamples,
            "starts": starts, "confidence": CONFIDENCE, "runs": len(points.runs), "points": len(points),
            "truth": dict(design.truth), "run_noise": design.run_noise, "point_noise": design.point_noise,
            "fit_seconds": round(fitting / draws, 3),
            "refit_milliseconds": round(1e3 * refitting / draws / resamples, 3)}


def main() -> None:
    """Runs the laws that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", default=",".join(DESIGNS), help="comma-separated")
    parser.add_argument("--draws", type=int, default=100, help="experiments a law")
    parser.add_argument("--resamples", type=int, default=400, help="of the runs, an experiment")
    parser.add_argument("--seed", type=int, default=0, help="of the experiments")
    parser.add_argument("--starts", type=int, default=STARTS, help="of each fit")
    parser.add_argument("--four_runs", action="store_true", help="four sizes, 11 points a run; chinchilla alone")
    flags = parser.parse_args()
    if flags.four_runs and flags.laws != "chinchilla":
        parser.error("--four_runs needs --laws=chinchilla: its losses are of that law")
    for law in flags.laws.split(","):
        found = coverage(law, FOUR_RUNS if flags.four_runs else DESIGNS[law], draws=flags.draws,
                         resamples=flags.resamples, seed=flags.seed, starts=flags.starts)
        print(json.dumps({"benchmark": "scaling_coverage", **found}), flush=True)


if __name__ == "__main__":
    main()
