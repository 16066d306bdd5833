"""What points do not identify: told by name, with what is missing."""

import numpy as np
import pytest

from benchmarks.scaling_coverage import DESIGNS
from mtp_jax.analysis.scaling.fit import fit
from mtp_jax.analysis.scaling.identify import flat, identify
from mtp_jax.analysis.scaling.laws import LAWS, get_law
from mtp_jax.analysis.scaling.points import Points

GRIDS = {name: design.grid() for name, design in DESIGNS.items()}


def told(name, mask=None, fixed=None, points=None):
    points = GRIDS[name] if points is None else points
    return identify(get_law(name), points if mask is None else points.select(mask(points)), fixed)


@pytest.mark.parametrize("name", LAWS)
def test_nothing_is_said_of_points_that_suffice(name):
    assert told(name) == ()


def test_three_numbers_of_loops_cannot_fix_three_parameters():
    def three(points):
        return np.isin(points["T"], (2, 4, 8))

    (line,) = told("looped_total", three)
    assert line.startswith("C, gamma and t3 are not identified: 3 values of T (2, 4, 8), and 4 are needed. Fix 1")
    assert told("looped_total", three, {"t3": 0.0}) == ()
    assert told("looped_total", lambda points: np.isin(points["T"], (1, 2, 4, 8))) == ()
    assert told("looped_total", lambda points: points["T"] == 4)[0].startswith("C, gamma and t3 are not identified: 1 ")
    assert told("looped_total", lambda points: points["T"] == 4, {"C": 0.0, "gamma": 1.0, "t3": 0.0}) == ()


def test_two_sizes_cannot_fix_two_parameters():
    def two(points):
        return points["N"] <= np.unique(points["N"])[1]

    assert told("chinchilla", two)[0].startswith("A and alpha are not identified: 2 values of N (1e+06, 3.162e+06)")
    assert told("chinchilla", two, {"alpha": 0.35}) == ()
    assert told("chinchilla", two, {"E": 1.8}) == ()
    assert told("looped_total", two)[0].startswith("A, alpha and t1 are")
    assert told("per_head", two)[0].startswith("A_1, A_2, A_3, A_4 and alpha are")


@pytest.mark.parametrize("name, column, blamed", [
    ("head_one", "n", ["kappa", "psi"]), ("iso_depth", "T", ["phi"])])
def test_powers_of_heads_and_loops_need_two_values(name, column, blamed):
    lines = told(name, lambda points: points[column] == 4)
    assert [line.split()[0] for line in lines] == blamed
    assert all(f"1 value of {column} (4), and 2 are needed" in line for line in lines)


@pytest.mark.parametrize("name, mask, message", [
    ("chinchilla", lambda p: np.arange(len(p)) < 4, r"5 free parameters \(E, A, B, alpha, beta\) need at least 5 runs "
     "that differ in N or D, and there are 4. Not identified: A, alpha"),
    ("chinchilla", lambda p: p["N"] == p["N"][0], r"1 value of N \(1e\+06\), and A and alpha are not identified with "
     "fewer than 3"),
    ("chinchilla", lambda p: p["D"] == p["D"][0], "B and beta are not identified with fewer than 3"),
    ("per_head", lambda p: (p["head"] < 3) | (p["N"] == p["N"][0]), "of head 3, and A_3 is not identified with fewer "
     "than 2"),
    ("looped_total", lambda p: np.arange(len(p)) < 9, "10 free parameters .* at least 10 points"),
])
def test_too_few_runs_are_refused(name, mask, message):
    with pytest.raises(ValueError, match="Too few .*" + message):
        told(name, mask)


def test_columns_that_a_law_does_not_read_are_told():
    (line,) = told("chinchilla", points=GRIDS["head_one"])
    assert line.startswith("chinchilla does not read n, and the points have 4 values of n (1, 2, 4, 8)")
    (line,) = told("looped_total", points=GRIDS["looped_step"].select(GRIDS["looped_step"]["loop"] > 1))[:1]
    assert line.startswith("C, gamma and t3")
    with pytest.raises(ValueError, match="head_one is a law of head 1, and point 2, of run run 0, is of head 2"):
        told("head_one", points=GRIDS["per_head"])


def test_the_optimum_tells_terms_that_cannot_be_parted():
    """With D = 20 N and one exponent the two terms are one."""
    N = np.geomspace(1e6, 1e10, 12)
    points = Points({"run": np.asarray([f"{i}" for i in range(12)]), "N": N, "D": 20 * N, "loss": 2 + 600 / N**0.35})
    assert any(line.startswith("A and B are not identified: at the optimum")
               for line in fit("chinchilla", points, fixed={"alpha": 0.35, "beta": 0.35}, starts=8).warnings)


def test_the_optimum_tells_a_term_that_does_nothing():
    N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e6, 1e10, 6), np.geomspace(1e8, 1e12, 6)))
    noise = np.random.default_rng(0).normal(0, 1e-3, 36)
    names = np.asarray([f"{i}" for i in range(36)])
    flat_in_d = Points({"run": names, "N": N, "D": D, "loss": (2 + 600 / N**0.35) * np.exp(noise)})
    lines = fit("chinchilla", flat_in_d, starts=16).warnings
    assert any("beta" in line.split(" not identified")[0] for line in lines)
    assert not any("alpha" in line.split(" not identified")[0] for line in lines)


def test_resamples_at_an_end_are_told():
    draws = {"E": np.ones(10), "A": np.asarray([0.0] * 5 + [1.0] * 5), "B": np.ones(10), "alpha": np.full(10, 0.3),
             "beta": np.asarray([3.0] * 2 + [0.4] * 8)}
    lines = flat(get_law("chinchilla"), draws)
    assert [line.split()[0] for line in lines] == ["A", "beta"] and "20% of the resamples" in lines[1]
    assert flat(get_law("chinchilla"), draws, {"A": 0.0, "beta": 3.0}) == ()
