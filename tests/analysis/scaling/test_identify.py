"""What points do not identify: told by name, with what is missing."""

import numpy as np
import pytest

from benchmarks.scaling_coverage import DESIGNS
from mtp_jax.analysis.scaling.fit import fit
from mtp_jax.analysis.scaling.identify import flat, identify
from mtp_jax.analysis.scaling.laws import LAWS, get_law
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.analysis.scaling.problem import make

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

    for name, blamed, needed in (("chinchilla", "A and alpha are", 3), ("looped_total", "A, alpha and t1 are", 4),
                                 ("per_head", "A_1, A_2, A_3, A_4 and alpha are", 3)):
        with pytest.raises(ValueError, match=f"2 values of N .*, and {blamed} not identified with fewer than {needed}"):
            told(name, two)
    assert told("chinchilla", two, {"alpha": 0.35}) == ()
    assert told("chinchilla", two, {"E": 1.8}) == ()


def along(sizes, tokens=11, **columns):
    """Returns a run of each size, with points along D."""
    N = np.repeat(sizes, tokens)
    D = np.tile(np.geomspace(1e6, 1e8, tokens), len(sizes))
    more = {name: np.full(len(N), float(value)) for name, value in columns.items()}
    return Points({"run": np.asarray([f"{size:g}" for size in N]), "N": N, "D": D, **more,
                   "loss": 1.8 + 480 / N**0.35 + 2100 / D**0.37})


def test_points_along_a_run_do_not_tell_of_sizes():
    """Seven points of two runs were fitted with five parameters."""
    points = along((1e6, 1e7), 4).select(np.arange(8) != 7)
    with pytest.raises(ValueError, match="Too few runs for chinchilla: A and alpha need at least 3 runs that differ in "
                       "N beside E, and there are 2. Not identified: A, alpha. Add runs"):
        fit("chinchilla", points)
    assert told("chinchilla", points=points, fixed={"alpha": 0.35}) == ()
    mixed = Points({**along((1e6, 1e7, 1e8, 1e9)).columns, "n": np.repeat([1.0, 1.0, 2.0, 2.0], 11)})
    assert told("head_one", points=mixed) == ()
    with pytest.raises(ValueError, match="head_one: A, alpha and kappa need at least 4 runs that differ in N or n"):
        told("head_one", points=mixed.select(mixed["N"] < 1e9))


@pytest.mark.parametrize("name, fixed", [("chinchilla", {}), ("looped_total", {"t1": 0.0, "t2": 0.0, "t3": 0.0})])
def test_four_sizes_of_one_number_of_loops_are_enough_to_fit(name, fixed):
    lines = told(name, points=along((3e5, 8e5, 2e6, 5e6), T=2), fixed=fixed)
    assert [line.split(" are")[0] for line in lines] == (["C and gamma"] if fixed else [])


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
    lines = flat(make(get_law("chinchilla"), GRIDS["chinchilla"]), draws)
    assert [line.split()[0] for line in lines] == ["A", "beta"] and "20% of the resamples" in lines[1]
    assert flat(make(get_law("chinchilla"), GRIDS["chinchilla"], {"A": 0.0, "beta": 3.0}), draws) == ()
    problem = make(get_law("looped_total"), GRIDS["looped_total"])
    values = problem.columns(np.where(np.asarray(problem.free) == "t2", problem.high, problem.low + 0.1)[None])
    (line,) = flat(problem, {"t1": np.zeros(10), "t2": np.repeat(values["t2"], 10), "t3": np.full(10, 9.9)})
    assert line.startswith("t2 is not identified: 100% of the resamples leave it at 3.162e+10, the greatest")
