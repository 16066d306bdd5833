"""Laws: their formulas, what they return to in special cases, slopes, and totals rebuilt from parts."""

import numpy as np
import pytest

from benchmarks.scaling_coverage import DESIGNS
from mtp_jax.analysis.scaling import problem as problems
from mtp_jax.analysis.scaling.laws import LAWS, get_law, rebuild_heads, rebuild_total
from mtp_jax.analysis.scaling.points import Points

VALUES = {name: dict(design.truth) for name, design in DESIGNS.items()}


def some_points(count=40, seed=0):
    random = np.random.default_rng(seed)
    N = np.exp(random.uniform(13, 22, count))
    return Points({"run": np.asarray([f"run {i}" for i in range(count)]), "N": N, "N_rec": 0.7 * N, "N_once": 0.3 * N,
                   "D": np.exp(random.uniform(16, 26, count)), "loss": random.uniform(2, 5, count),
                   "n": random.choice([1, 2, 4], count), "head": random.choice([1, 2, 3, 4], count),
                   "T": random.choice([1, 2, 4], count)})


def formula(name, v, p):
    """Returns what a law says, written out."""
    N, D, n, T = p["N"], p["D"], p["n"], p["T"]
    if name == "chinchilla":
        return v["E"] + v["A"] / N**v["alpha"] + v["B"] / D**v["beta"]
    if name in ("looped_total", "looped_step"):
        loops = T if name == "looped_total" else p["loop"]
        return (v["E"] + v["A"] / (N + v["t1"])**v["alpha"] + v["B"] / (D + v["t2"])**v["beta"]
                + v["C"] / (loops + v["t3"])**v["gamma"])
    if name == "iso_depth":
        return v["E"] + v["A"] * (p["N_once"] + T**v["phi"] * p["N_rec"])**-v["alpha"] + v["B"] * D**-v["beta"]
    if name == "per_head":
        own = {c: np.asarray([v[f"{c}_{k:g}"] for k in p["head"]]) for c in "EAB"}
        return own["E"] + own["A"] * N**-v["alpha"] + own["B"] * D**-v["beta"]
    return v["E"] + v["A"] * n**v["kappa"] * N**-v["alpha"] + v["B"] * (D * n**v["psi"])**-v["beta"]


@pytest.mark.parametrize("name", LAWS)
def test_a_law_predicts_its_formula(name):
    points = some_points()
    np.testing.assert_allclose(get_law(name).predict(VALUES[name], points), formula(name, VALUES[name], points),
                               rtol=1e-12)


def test_special_cases_are_chinchilla():
    points, chinchilla = some_points(), VALUES["chinchilla"]
    one = Points({**points.columns, "n": np.ones(40), "T": np.ones(40), "loop": np.ones(40)})
    expected = get_law("chinchilla").predict(chinchilla, points)
    for name, more in (("head_one", {"kappa": 0.3, "psi": 0.7}), ("iso_depth", {"phi": 0.4}),
                       ("looped_total", {"C": 0.0, "t1": 0.0, "t2": 0.0, "t3": 0.0, "gamma": 1.0})):
        np.testing.assert_allclose(get_law(name).predict({**chinchilla, **more}, one), expected, rtol=1e-12)
        if name != "looped_total":  # with more heads or loops it is another law
            assert np.abs(get_law(name).predict({**chinchilla, **more}, points) - expected).max() > 1e-3


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("fixed", [(), ("A", "t1"), ("A_2", "alpha"), ("B", "gamma", "phi", "psi", "E")])
def test_slopes_are_those_of_differences(name, fixed):
    points = some_points()
    held = {key: VALUES[name][key] for key in fixed if key in VALUES[name]}
    problem = problems.make(get_law(name), points, held)
    at = problem.search({**VALUES[name]}) + 0.01
    residuals, slopes = problem.residuals(at[None])
    for place, parameter in enumerate(problem.free):
        step = np.zeros(len(at))
        step[place] = 1e-6
        up, down = (problem.residuals((at + side * step)[None], slopes=False)[0][0] for side in (1, -1))
        np.testing.assert_allclose(slopes[0, place], (up - down) / 2e-6, atol=2e-8, err_msg=parameter)
    np.testing.assert_allclose(residuals[0], np.log(get_law(name).predict(problem.values(at), points) / points["loss"]),
                               atol=1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_search_coordinates_come_back_as_values(name):
    problem = problems.make(get_law(name), some_points())
    assert problem.values(problem.search(VALUES[name])) == pytest.approx(VALUES[name], rel=1e-9)


def test_huber_is_square_then_line():
    np.testing.assert_allclose(problems.huber(np.asarray([0.5, -2.0, 0.0]), 1.0), [0.125, 1.5, 0.0])


def test_the_total_is_rebuilt_from_the_loops():
    points, values, gate = some_points(), VALUES["looped_step"], (0.1, 0.2, 0.7)
    by_hand = sum(share * (values["E"] + values["A"] / (points["N"] + values["t1"])**values["alpha"]
                           + values["B"] / (points["D"] + values["t2"])**values["beta"]
                           + values["C"] / (loop + values["t3"])**values["gamma"])
                  for loop, share in enumerate(gate, start=1))
    np.testing.assert_allclose(rebuild_total(values, points, gate), by_hand, rtol=1e-12)
    rounded = rebuild_total(values, points, [0.0004, 0.0855, 0.3793, 0.5348])  # as printed in the source
    assert np.all(rounded < rebuild_total(values, points, [1.0]))
    for wrong in ((0.5, 0.4), (1.5, -0.5), ()):
        with pytest.raises(ValueError, match="sum to 1"):
            rebuild_total(values, points, wrong)


def test_the_sum_over_heads_is_rebuilt():
    points, values = some_points(), VALUES["per_head"]
    alone = [get_law("per_head").predict(values, Points({**points.columns, "head": np.full(40, float(k))}))
             for k in (1, 3)]
    np.testing.assert_allclose(rebuild_heads(values, points, {1: 1.0, 3: 0.5}), alone[0] + 0.5 * alone[1], rtol=1e-12)
    with pytest.raises(ValueError, match="no coefficients for head 5; it has 1, 2, 3, 4"):
        rebuild_heads(values, points, {5: 1.0})


def test_what_is_said_of_wrong_names():
    with pytest.raises(ValueError, match='Did you mean "chinchilla"'):
        get_law("chinchila")
    values = VALUES["chinchilla"]
    with pytest.raises(ValueError, match="no value for beta"):
        get_law("chinchilla").predict({k: v for k, v in values.items() if k != "beta"}, some_points())
    with pytest.raises(ValueError, match="'gama'"):
        get_law("chinchilla").predict({**values, "gama": 1.0}, some_points())
    with pytest.raises(ValueError, match="per_head has no value for E"):
        get_law("per_head").predict({"alpha": 1.0, "beta": 1.0}, some_points())
