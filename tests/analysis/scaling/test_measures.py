"""How good a fit is, by hand, and the best sizes for a budget."""

import math

import numpy as np
import pytest

from benchmarks.scaling_coverage import DESIGNS
from mtp_jax.analysis.scaling.fit import Fit
from mtp_jax.analysis.scaling.measures import measures
from mtp_jax.analysis.scaling.optimal import optimal
from mtp_jax.analysis.scaling.points import Points, last_half

FITS = {name: Fit(name, design.truth, 0.0) for name, design in DESIGNS.items()}


def curves():
    """Returns two runs of four and two points, whose losses are the law's plus known errors."""
    columns = {"run": np.asarray(["a"] * 4 + ["b"] * 2), "N": np.asarray([1e7] * 4 + [1e8] * 2),
               "D": np.asarray([1e9, 2e9, 3e9, 4e9, 1e9, 9e9])}
    exact = FITS["chinchilla"].predict(Points({**columns, "loss": np.ones(6)}))
    errors = np.asarray([0.5, 0.1, -0.02, 0.04, 0.3, -0.01])
    return Points({**columns, "loss": exact + errors}), errors


def test_measures_by_hand():
    points, errors = curves()
    found, loss = measures(FITS["chinchilla"], points), points["loss"]
    assert last_half(points).tolist() == [False, False, True, True, False, True]
    assert found["rmse"] == pytest.approx(math.sqrt((errors**2).mean()))
    assert found["r2"] == pytest.approx(1 - (errors**2).sum() / ((loss - loss.mean())**2).sum())
    assert found["mean_residual"] == pytest.approx(errors.mean()) and found["worst"] == pytest.approx(0.5)
    assert found["worst_last_half"] == pytest.approx(0.04)
    assert found["rmse_last_half"] == pytest.approx(math.sqrt((0.02**2 + 0.04**2 + 0.01**2) / 3))
    assert (found["points"], found["runs"]) == (6, 2)
    logs = np.abs(np.log(loss / (loss - errors)))
    assert found["objective"] == pytest.approx(1e-3 * (logs - 5e-4).sum())  # all are past delta


def test_held_out_points_are_measured_around_their_own_mean():
    points, errors = curves()
    held = points.select(points["N"] == 1e8)
    found = measures(FITS["chinchilla"], held)
    assert found["r2"] == pytest.approx(1 - (errors[4:]**2).sum() / ((held["loss"] - held["loss"].mean())**2).sum())
    one = measures(FITS["chinchilla"], held.select(np.asarray([True, False])))
    assert math.isnan(one["r2"]) and one["rmse"] == pytest.approx(0.3)
    with pytest.raises(ValueError, match="at least one point"):
        measures(FITS["chinchilla"], held.select(np.asarray([False, False])))


def best_on_a_line(fit, spend, n=1, T=1, head=1, share=1.0):
    """Returns the N of least loss with N D = spend, by trying many."""
    N = np.exp(np.linspace(0, math.log(spend), 200_001))
    ones = np.ones(len(N))
    points = Points({"run": np.full(len(N), "x"), "N": N, "D": spend / N, "loss": ones, "n": n * ones, "T": T * ones,
                     "head": head * ones, "N_rec": share * N, "N_once": (1 - share) * N})
    return N[fit.predict(points).argmin()]


def test_the_closed_form_of_chinchilla():
    v, flops = DESIGNS["chinchilla"].truth, 5.76e23
    G = (v["alpha"] * v["A"] / (v["beta"] * v["B"]))**(1 / (v["alpha"] + v["beta"]))
    N, D = optimal(FITS["chinchilla"], flops)
    assert N == pytest.approx(G * (flops / 6)**(v["beta"] / (v["alpha"] + v["beta"])))
    assert D == pytest.approx((flops / 6)**(v["alpha"] / (v["alpha"] + v["beta"])) / G)
    assert 6 * N * D == pytest.approx(flops)


@pytest.mark.parametrize("name, setting, spend", [
    ("chinchilla", {}, 1e20), ("head_one", {"n": 4}, 1e20), ("per_head", {"head": 3}, 1e20),
    ("iso_depth", {"T": 4, "recurrent": 0.8}, 1e20 / 3.4), ("looped_total", {"T": 4}, 1e20 / 4),
    ("looped_step", {"T": 2, "recurrent": 0.5}, 1e20 / 1.5)])
def test_the_optimum_is_where_no_other_split_is_better(name, setting, spend):
    N, D = optimal(FITS[name], 6e20, **setting)
    keys = {"recurrent": "share"}
    assert N * D == pytest.approx(spend)
    assert N == pytest.approx(best_on_a_line(FITS[name], spend, **{keys.get(k, k): v for k, v in setting.items()}),
                              rel=1e-3)


def test_heads_and_offsets_move_the_optimum():
    assert optimal(FITS["head_one"], 6e20, n=4)[0] != pytest.approx(optimal(FITS["head_one"], 6e20)[0], rel=0.01)
    none = Fit("looped_total", {**DESIGNS["looped_total"].truth, "t1": 0.0, "t2": 0.0}, 0.0)
    tiny = Fit("looped_total", {**none.values, "t1": 1e-9}, 0.0)  # searched, where `none` is solved
    assert optimal(tiny, 6e20)[0] == pytest.approx(optimal(none, 6e20)[0], rel=1e-5)


def test_a_budget_that_has_no_optimum_is_refused():
    flat = Fit("chinchilla", {**DESIGNS["chinchilla"].truth, "B": 0.0}, 0.0)
    with pytest.raises(ValueError, match="gains nothing from D"):
        optimal(flat, 1e20)
    for wrong in ({"flops": -1.0}, {"flops": math.inf}, {"flops": 1e20, "n": 0}, {"flops": 1e20, "recurrent": 1.5}):
        with pytest.raises(ValueError, match="must"):
            optimal(FITS["chinchilla"], **wrong)
    with pytest.raises(ValueError, match="no coefficients for head 7"):
        optimal(FITS["per_head"], 1e20, head=7)
