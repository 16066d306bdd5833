"""What a result says: of its methods, of values beyond its points, of total losses, and its file."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.scaling_coverage import DESIGNS
from mtp_jax.analysis.scaling import report, result
from mtp_jax.analysis.scaling.command import FitRequest, run
from mtp_jax.analysis.scaling.fit import Fit
from mtp_jax.analysis.scaling.laws import get_law
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.analysis.scaling.workdirs import check_totals
from mtp_jax.config import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, TrainConfig, to_dict


def made(name="chinchilla", other=None, draws=None, **changes):
    """Returns a result of a law's true values, on its points."""
    points = DESIGNS[name].draw(name, 0)
    points = Points({**points.columns, **changes})
    values = DESIGNS[name].truth
    second = Fit(name, {**values, **other}, 0.0, "projection") if other is not None else None
    return result.Result(Fit(name, values, 0.0), second, points, np.zeros(len(points), bool), draws or {}, 0.95, {})


def told(found, start):
    return [line for line in result.lines(found) if line.startswith(start)]


def test_methods_that_predict_the_same_may_differ_in_parameters():
    (line,) = told(made(other={}), "The methods")
    assert line.startswith("The methods predict the same") and not told(made(other={}), "Yet")
    near = made(other={"A": 500.0}, draws={"A": np.linspace(470, 490, 50)})
    assert result.differing(near) == ["A"]  # 4 %, but beyond the interval
    assert result.differing(made(other={"A": 500.0}, draws={"A": np.linspace(400, 600, 50)})) == []
    (line,) = told(made(other={"beta": 0.45, "B": 2200.0}), "Yet")
    assert line.startswith("Yet they differ in beta, by more than a tenth")
    assert told(made(other={"beta": 0.45}), "The methods DISAGREE")


def test_a_file_is_json_where_a_measure_is_not_defined(tmp_path):
    found = made()
    one = dataclasses.replace(found, held_out=np.arange(len(found.points)) == 3)
    path = result.write(one, tmp_path / "law.json")
    values = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert values["quality"]["held out"]["r2"] is None and values["quality"]["held out"]["rmse"] > 0
    assert np.isnan(result.read(path).quality()["held out"]["r2"])


def test_the_last_half_is_told_along_runs_alone():
    assert result.quality_table(made())[1].split()[-1] == "-"
    assert np.isfinite(made("looped_total").quality()["fitted"]["worst_last_half"])
    assert result.quality_table(made("looped_total"))[1].split()[-1] != "-"


@pytest.mark.parametrize("name, at, expected", [
    ("chinchilla", {"N": 1e8, "D": 1e10}, ""), ("chinchilla", {"N": 1e8, "D": 1e10, "n": 4}, "n = 4 (fitted: 1)"),
    ("head_one", {"N": 1e8, "D": 1e10, "n": 16}, "n = 16 (fitted: 1 to 8)"),
    ("looped_total", {"N": 1e8, "D": 1e10, "T": 32}, "T = 32 (fitted: 1 to 16)"),
    ("looped_step", {"N": 1e8, "D": 1e10, "loop": 9}, "loop = 9 (fitted: 1 to 8)"),
    ("per_head", {"N": 1e12, "D": 1e10, "head": 2}, "N = 1T (fitted: 1M to 10B)")])
def test_what_lies_beyond_the_points_is_named(name, at, expected):
    notes = result.prediction_lines(made(name), at)[1:]
    assert notes == [] if not expected else f"outside of what was fitted: {expected}. The" in notes[0]


def test_the_share_that_is_looped_comes_from_the_points():
    plain, tokens = made("looped_total"), {}
    for share in (1.0, 0.5):
        found = dataclasses.replace(plain, points=Points({**plain.points.columns, "N_rec": share * plain.points["N"]}))
        (line,) = result.optimal_lines(found, 6e20, {"T": 4})[:1]
        tokens[share] = line
        assert not any("N_rec" in note for note in result.optimal_lines(found, 6e20, {"T": 4}))
    assert tokens[1.0] != tokens[0.5]
    first, note, *_ = result.optimal_lines(plain, 6e20, {"T": 4})
    assert first == tokens[1.0] and "all of N is taken to be run T times" in note
    assert not any("N_rec" in line for line in result.optimal_lines(plain, 6e20, {"T": 1}))


def test_total_losses_are_not_compared_across_heads():
    heads, loops = DESIGNS["head_one"].grid(), DESIGNS["looped_total"].grid()
    with pytest.raises(ValueError, match="--loss=total is a sum over all heads.*n = 1, 2, 4, 8 heads: take --loss=hea"):
        check_totals("total", get_law("chinchilla"), heads)
    with pytest.raises(ValueError, match="--loss=task .*head_one is a law of single heads: take --loss=head_1"):
        check_totals("task", get_law("head_one"), heads.select(heads["n"] == 4))
    with pytest.raises(ValueError, match="take --loss=head_k"):
        check_totals("total", get_law("per_head"), heads.select(heads["n"] == 4))
    (line,) = check_totals("total", get_law("looped_total"), loops)
    assert "T = 1, 2, 3, 4, 6, 8, 12, 16: the sums hold different terms" in line and "up to beta ln T" in line
    assert check_totals("head_1", get_law("head_one"), heads) == ()
    assert check_totals("total", get_law("chinchilla"), heads.select(heads["n"] == 4)) == ()


def write_runs(folder, n=2, T=1, **objective):
    """Writes workdirs of two sizes; head k loses 2 + k + 100 / sqrt(D), and the objective is the weighted sum.

    Before and after the stable phase the first loop takes all.
    """
    folders = []
    for width in (8, 16):
        model = ModelConfig(num_heads=n, num_layers=10, d_model=width, num_attention_heads=2, d_ff=2 * width,
                            vocab_size=259, trunk_kind="looped" if T > 1 else "plain", loops=T)
        config = Config(model=model, objective=ObjectiveConfig(**objective), train=TrainConfig(num_steps=100),
                        optimizer=OptimizerConfig(schedule="wsd", warmup_steps=10, decay_fraction=0.1))
        place = folder / f"{width}"
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(to_dict(config)))
        weights, lines = objective.get("head_weights") or (1.0,) * n, []
        for step in (10, 30, 60, 90, 100):
            own = [3.0 + k + 100 / (step * config.data.batch_size * config.data.seq_len)**0.5 for k in range(n)]
            total = sum(w * one for w, one in zip(weights, own))
            total /= sum(weights) if objective.get("reduction") == "mean" else 1.0
            share = [1 / T] * T if 10 < step <= 90 else [1.0] + [0.0] * (T - 1)
            lines.append({"step": step, "split": "validation", "loss": total, "head_loss": own, "task_loss": total,
                          "exit_share": share})
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        folders.append(str(place))
    return folders


def test_the_command_refuses_sums_of_several_heads(tmp_path):
    folders = write_runs(tmp_path / "two") + write_runs(tmp_path / "four", 4)
    with pytest.raises(ValueError, match="n = 2, 4 heads"):
        run(FitRequest(law="chinchilla", workdirs=tuple(folders), loss="total", out=str(tmp_path / "x.json")))


@pytest.mark.parametrize("objective, told", [
    ({}, "has R² 1.000 and RMSE 0.000"), ({"head_weights": (1.0, 0.5)}, "has R² 1.000 and RMSE 0.000"),
    ({"head_weights": (1.0, 0.5), "reduction": "mean"}, "has R² 1.000 and RMSE 0.000"),
    ({"schedule": "deepseek"}, "is not rebuilt")])
def test_heads_are_weighted_as_the_runs_were(objective, told, tmp_path):
    values = {"E_1": 3.0, "E_2": 4.0, "A_1": 0.0, "A_2": 0.0, "B_1": 100.0, "B_2": 100.0, "alpha": 1.0, "beta": 0.5}
    whole = dataclasses.replace(made("per_head"), fit=Fit("per_head", values, 0.0))
    (line,) = report._heads_rebuilt("per_head_2", whole, write_runs(tmp_path, **objective))
    assert told in line


def test_the_mean_gate_is_that_of_the_stable_phase(tmp_path):
    (line,) = report._loops_rebuilt(made("looped_step"), write_runs(tmp_path, 1, 4))
    assert "mean gate (0.250, 0.250, 0.250, 0.250)" in line
