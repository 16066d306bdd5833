"""Fits: published points give published values, both methods the same, and known laws come back."""

import json
import pathlib

import numpy as np
import pytest
from scipy.optimize import minimize, nnls, rosen, rosen_der

from benchmarks.scaling_coverage import DESIGNS
from mtp_jax.analysis.scaling import huber, projection
from mtp_jax.analysis.scaling.descent import descend
from mtp_jax.analysis.scaling.fit import METHODS, Fit, fit, fit_apart
from mtp_jax.analysis.scaling.laws import LAWS, get_law
from mtp_jax.analysis.scaling.measures import measures
from mtp_jax.analysis.scaling.points import Points, held_out, read_csv
from mtp_jax.analysis.scaling.problem import make

DATA = pathlib.Path(__file__).parents[4] / "shared" / "data" / "scaling"
published = pytest.mark.skipif(not DATA.is_dir(), reason="the published points are not there")


def chinchilla_points():
    return read_csv(DATA / "chinchilla_points.csv", columns={"N": "N_params", "D": "D_tokens"},
                    keep=["kept_in_epoch_fit=1"])


def gadre_points(size="N_params"):
    return read_csv(DATA / "gadre2024_openlm_testbed.csv", keep=["train_dataset=c4_original"],
                    columns={"N": size, "D": "D_tokens", "loss": "loss_c4_val", "run": "name"})


def small(name, seed=0, noise=True):
    """Returns a small experiment of a law: points with all that identifies it."""
    points = DESIGNS[name].draw(name, seed)
    keep = np.isin(points["N"], np.unique(points["N"])[::2]) & np.isin(points["D"], np.unique(points["D"])[::2])
    points = points.select(keep)
    if not noise:
        points = Points({**points.columns, "loss": get_law(name).predict(DESIGNS[name].truth, points)})
    return points


@published
@pytest.mark.parametrize("method", METHODS)
def test_the_chinchilla_points_give_the_values_of_the_replication(method):
    points = chinchilla_points()
    found = fit("chinchilla", points, method=method)
    assert len(points) == found.points == found.runs == 240
    assert found.values["alpha"] == pytest.approx(0.3473, abs=0.003)
    assert found.values["beta"] == pytest.approx(0.3672, abs=0.003)
    assert found.values["E"] == pytest.approx(1.8172, abs=0.005)
    assert found.objective <= 0.0010190
    own = measures(found, points)
    assert round(own["r2"], 3) == 0.994 and own["objective"] == pytest.approx(found.objective, rel=1e-9)
    assert found.warnings == ()


@published
@pytest.mark.parametrize("read", [chinchilla_points, gadre_points])
def test_both_methods_end_at_the_same_place_on_published_points(read):
    one, two = (fit("chinchilla", read(), method=method) for method in METHODS)
    assert one.objective == pytest.approx(two.objective, rel=1e-9)
    assert one.values == pytest.approx(two.values, rel=1e-4)


@published
def test_coefficients_that_were_printed_score_as_they_did():
    points = chinchilla_points()
    printed = Fit("chinchilla", {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}, 0.0)
    source = Fit("chinchilla", {"E": np.exp(0.5267228), "A": np.exp(6.0073404), "B": np.exp(6.0179186),
                                "alpha": 0.33917, "beta": 0.28491}, 0.0)
    assert measures(printed, points)["objective"] == pytest.approx(0.00412, abs=5e-6)
    assert measures(printed, points)["r2"] == pytest.approx(0.966, abs=5e-4)
    assert measures(printed, points)["mean_residual"] == pytest.approx(-0.045, abs=5e-4)
    assert measures(source, points)["objective"] == pytest.approx(0.00123, abs=5e-6)


@published
@pytest.mark.parametrize("size, expected", [
    ("N_params", {"E": 1.62, "A": 122.6, "B": 242.6, "alpha": 0.253, "beta": 0.262}),
    ("N_params_no_embed", {"E": 1.60, "A": 67.5, "B": 224.3, "alpha": 0.2245, "beta": 0.257})])
def test_the_gadre_runs_give_the_values_that_another_fit_gave(size, expected):
    found = fit("chinchilla", gadre_points(size))
    assert found.values == pytest.approx(expected, rel=4e-3)


@published
def test_the_largest_models_are_predicted_from_the_others():
    points = gadre_points()
    mask = held_out(points, "N>1e9")
    found = fit("chinchilla", points.select(~mask))
    seen, unseen = measures(found, points.select(~mask)), measures(found, points.select(mask))
    assert seen["points"] == 31 and unseen["points"] == 3
    assert seen["rmse"] == pytest.approx(0.1225, abs=0.002) and seen["r2"] == pytest.approx(0.980, abs=0.001)
    assert unseen["rmse"] == pytest.approx(0.113, abs=0.003)  # 1.4B and 6.9B, losses of 2.4 to 2.9


@pytest.mark.parametrize("name", [name if name != "looped_step" else pytest.param(name, marks=pytest.mark.slow)
                                  for name in LAWS])
def test_both_methods_find_a_law_in_points_with_noise(name):
    points = small(name)
    one, two = (fit(name, points, method=method, starts=16) for method in METHODS)
    assert one.objective == pytest.approx(two.objective, rel=1e-6)
    np.testing.assert_allclose(one.predict(points), two.predict(points), rtol=2e-5)
    problem = make(get_law(name), points)
    assert one.objective <= problem.objective(problem.search(DESIGNS[name].truth)[None])[0]


@pytest.mark.parametrize("name", ["chinchilla", "iso_depth", "head_one", "per_head"])
def test_a_law_without_noise_comes_back(name):
    found = fit(name, small(name, noise=False), starts=16)
    assert found.values == pytest.approx(DESIGNS[name].truth, rel=1e-3)
    assert found.objective < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_fixed_parameters_stay(method):
    points = small("chinchilla")
    free = fit("chinchilla", points, method=method)
    fixed = {name: free.values[name] for name in ("A", "beta")}
    found = fit("chinchilla", points, method=method, fixed=fixed, starts=16)
    assert found.fixed == fixed and {name: found.values[name] for name in fixed} == pytest.approx(fixed, rel=1e-12)
    assert found.objective == pytest.approx(free.objective, rel=1e-9)  # fixed where they end when they are free
    off = fit("chinchilla", points, method=method, fixed={"beta": fixed["beta"] + 0.05}, starts=16)
    assert off.objective > 1.05 * free.objective and off.values["beta"] == fixed["beta"] + 0.05
    assert set(found.free) == {"E", "B", "alpha"}


def test_units_of_N_and_D_change_coefficients_alone():
    points = small("chinchilla")
    other = Points({**points.columns, "N": points["N"] * 1e-6, "D": points["D"] * 1e3})
    one, two = fit("chinchilla", points), fit("chinchilla", other)
    assert {k: two.values[k] for k in ("E", "alpha", "beta")} == pytest.approx(
        {k: one.values[k] for k in ("E", "alpha", "beta")}, rel=1e-5)
    assert two.values["A"] == pytest.approx(one.values["A"] * 1e-6**one.values["alpha"], rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_coefficients_are_not_negative(method):
    points = small("chinchilla", noise=False)
    rising = Points({**points.columns, "loss": 3 + 100 / points["N"]**0.35 + 0.02 * np.log(points["D"] / 1e8)})
    found = fit("chinchilla", rising, method=method)
    assert min(found.values.values()) >= 0
    assert any("B is 0" in line or "beta is not identified" in line for line in found.warnings)


def test_each_value_of_a_column_is_fitted_apart():
    points = small("head_one")
    found = fit_apart("chinchilla", points, "n", starts=8)
    assert list(found) == [1, 2, 4, 8]
    assert found[2].values == fit("chinchilla", points.select(points["n"] == 2), starts=8).values


def test_a_fit_comes_back_from_json():
    found = fit("per_head", small("per_head"), fixed={"beta": 0.37}, starts=8)
    assert Fit.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(ValueError, match="lacks values"):
        Fit.from_json({"law": "chinchilla", "objective": 1.0})


def test_what_is_said_of_wrong_arguments():
    points = small("chinchilla")
    for message, options in (("'hubert'", {"method": "hubert"}), ("'gamma'", {"fixed": {"gamma": 1.0}}),
                             ("at least 0", {"fixed": {"A": -1.0}}), ("starts=0", {"starts": 0}),
                             ("every parameter", {"fixed": DESIGNS["chinchilla"].truth})):
        with pytest.raises(ValueError, match=message):
            fit("chinchilla", points, **options)
    points["loss"][3] = np.nan
    with pytest.raises(ValueError, match=f"Point 4, of run {points['run'][3]}, has the loss nan"):
        fit("chinchilla", points)


def test_descent_ends_where_scipy_does():
    starts = np.random.default_rng(0).uniform(-2, 2, (6, 4))
    low, high = np.asarray([-2.0, -2.0, -2.0, -2.0]), np.asarray([0.8, 2.0, 2.0, 2.0])  # the first one binds

    def objective(_, at):
        return np.asarray([rosen(x) for x in at]), np.stack([rosen_der(x) for x in at])

    values, ends = descend(objective, starts, low, high, tolerance=1e-14, steps=2000)
    expected = minimize(rosen, np.zeros(4), jac=rosen_der, method="L-BFGS-B", bounds=list(zip(low, high)),
                        options={"ftol": 1e-15, "gtol": 1e-10})
    best = values.argmin()
    np.testing.assert_allclose(ends[best], expected.x, atol=1e-4)
    assert values[best] == pytest.approx(expected.fun, rel=1e-8) and ends[best, 0] == 0.8
    assert np.all(ends >= low) and np.all(ends <= high)


def test_inner_least_squares_are_those_of_scipy():
    random = np.random.default_rng(0)
    columns, target = random.normal(size=(60, 4, 12)), random.normal(size=(60, 12))
    expected = np.stack([nnls(c.T, t)[0] for c, t in zip(columns, target)])
    np.testing.assert_allclose(projection._non_negative(columns, target), expected, atol=1e-9)
    assert {int(count) for count in (expected > 0).sum(axis=1)} >= {1, 2, 3, 4}


def test_starts_differ_with_the_seed_and_lie_in_range():
    problem = make(get_law("chinchilla"), small("chinchilla"))
    one, two = (huber.starts_of(problem, 8, seed=seed) for seed in (0, 1))
    assert not np.allclose(one, two) and np.array_equal(one, huber.starts_of(problem, 8, seed=0))
    assert np.all(one >= problem.low) and np.all(one <= problem.high)
