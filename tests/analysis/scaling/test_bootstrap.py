"""Intervals: over runs, each refit as good as a new fit, and as wide as they should be."""

import dataclasses

import numpy as np
import pytest

from benchmarks.scaling_coverage import DESIGNS, FOUR_RUNS, coverage
from mtp_jax.analysis.scaling.bootstrap import bootstrap, doubts, interval, refit, resample
from mtp_jax.analysis.scaling.counting import enough
from mtp_jax.analysis.scaling.fit import fit
from mtp_jax.analysis.scaling.identify import identify
from mtp_jax.analysis.scaling.laws import LAWS, get_law
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.analysis.scaling.problem import make


@pytest.mark.parametrize("name", ["chinchilla", "head_one"])
def test_a_refit_is_as_good_as_a_fit_to_the_runs_drawn(name):
    points = DESIGNS[name].draw(name, 0)
    problem, found = make(get_law(name), points), fit(name, points, starts=8)
    counts = np.random.default_rng(1).multinomial(len(points), np.full(len(points), 1 / len(points)), size=3)
    ends = refit(problem, problem.search(found.values), counts.astype(float))
    for end, own in zip(ends, counts):
        alone = fit(name, points.select(np.repeat(np.arange(len(points)), own)), starts=8)
        assert problem.objective(end[None], own)[0] == pytest.approx(alone.objective, rel=1e-4)
        np.testing.assert_allclose(get_law(name).predict(problem.values(end), points), alone.predict(points), rtol=1e-3)


def test_points_along_a_run_are_drawn_with_it():
    points = DESIGNS["chinchilla"].draw("chinchilla", 0)
    five = Points({name: np.repeat(values, 5) for name, values in points.columns.items()})
    alone = Points({**five.columns, "run": np.asarray([f"{i}" for i in range(len(five))])})
    one, again, wrong = (bootstrap(fit("chinchilla", each, starts=8), each, draws=200) for each in
                         (points, five, alone))
    for name, (low, high) in one.items():
        assert again[name] == pytest.approx((low, high), rel=5e-3)  # as many runs, so as wide
        assert wrong[name][1] - wrong[name][0] < 0.6 * (high - low)  # five times as many: narrower by the root of five


def test_fixed_parameters_have_no_interval_and_keep_their_value_in_draws():
    points = DESIGNS["chinchilla"].draw("chinchilla", 0)
    found = fit("chinchilla", points, fixed={"beta": 0.37, "B": 2100.0}, starts=8)
    draws = resample(found, points, draws=20)
    assert list(draws) == list(LAWS["chinchilla"].parameters)
    assert set(draws["beta"]) == {0.37} and set(draws["B"]) == {2100.0} and np.ptp(draws["A"]) > 0
    assert list(bootstrap(found, points, draws=20)) == ["E", "A", "alpha"]
    assert np.array_equal(draws["A"], resample(found, points, draws=20)["A"])
    assert not np.array_equal(draws["A"], resample(found, points, draws=20, seed=1)["A"])


def test_an_interval_holds_its_share():
    assert interval(np.arange(1001.0), 0.9) == pytest.approx((50.0, 950.0))
    with pytest.raises(ValueError, match="confidence=95"):
        interval(np.arange(3.0), 95)


def test_one_run_has_no_interval():
    points = DESIGNS["chinchilla"].draw("chinchilla", 0)
    found = fit("chinchilla", points, starts=8)
    one = Points({**points.columns, "run": np.full(len(points), "only")})
    with pytest.raises(ValueError, match="the points are of 1, only"):
        resample(found, one)
    with pytest.raises(ValueError, match="draws=0"):
        resample(found, points, draws=0)


def test_few_runs_and_resamples_that_tell_too_little_are_told():
    points = FOUR_RUNS.draw("chinchilla", 0)
    found = fit("chinchilla", points, starts=4)
    few, short = doubts(found, points, draws=2000)
    assert few.startswith("4 runs: the intervals are too narrow")
    # Three different runs are needed: of 4^4 draws 84 have two, and 4 have one.
    share = float(short.split("%")[0])
    assert share == pytest.approx(100 * 88 / 256, abs=3) and "too few different runs" in short
    (few,) = doubts(fit("chinchilla", points, fixed={"A": 480.0, "alpha": 0.35}, starts=4), points)
    assert few.startswith("4 runs")
    many = DESIGNS["chinchilla"].draw("chinchilla", 0)
    assert doubts(fit("chinchilla", many, starts=4), many) == ()


@pytest.mark.parametrize("name", ["chinchilla", "per_head", "iso_depth"])
def test_draws_are_counted_as_their_points_would_be(name):
    few = {key: tuple(values)[:4] for key, values in DESIGNS[name].of_runs.items()}
    points = dataclasses.replace(DESIGNS[name], of_runs=few).grid()
    runs, run = np.unique(points["run"], return_inverse=True)
    random, law = np.random.default_rng(0), get_law(name)
    counts = np.stack([random.multinomial(6, np.full(len(runs), 1 / len(runs))) for _ in range(60)])
    expected = []
    for count in counts:
        try:
            expected.append(identify(law, points.select(count[run] > 0)) == ())
        except ValueError:
            expected.append(False)
    assert enough(law, points, {}, counts).tolist() == expected and len(set(expected)) == 2


def test_intervals_hold_the_truth_as_often_as_they_say():
    found = coverage("chinchilla", DESIGNS["chinchilla"], draws=25, resamples=150, starts=4)
    assert found["least"] >= 0.8  # of 25; 19 or fewer are one in a thousand at 95 %


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_intervals_of_each_law_hold_the_truth_in_at_least_90_of_100_draws(name):
    found = coverage(name, DESIGNS[name], draws=100, resamples=400, starts=16)
    assert {key: found[key] for key in DESIGNS[name].truth if found[key] < 0.9} == {}
