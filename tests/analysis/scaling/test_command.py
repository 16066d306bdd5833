"""python -m mtp_jax.scaling on known laws, the report of a grid, and what is said of bad input."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from mtp_jax.analysis.scaling import command, report, result
from mtp_jax.analysis.scaling.command import FitRequest, PlotRequest, PredictRequest, assignments
from mtp_jax.analysis.scaling.points import Points
from mtp_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig, to_dict

ROOT = pathlib.Path(__file__).resolve().parents[3]
PUBLISHED = ROOT.parent / "shared" / "data" / "scaling"
TRUTH = {"E": 1.8, "A": 400.0, "B": 900.0, "alpha": 0.33, "beta": 0.35}
SIZES, TOKENS = (1e7, 4e7, 2e8, 1e9), (5e8, 2e9, 1e10)


def loss_of(N, D):
    return TRUTH["E"] + TRUTH["A"] / N ** TRUTH["alpha"] + TRUTH["B"] / D ** TRUTH["beta"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Returns a table of a known law with noise of one part in a thousand, and a column of the wrong losses."""
    path, noise = tmp_path_factory.mktemp("table") / "points.csv", np.random.default_rng(0)
    rows = [f"{N},{D},{loss_of(N, D) * np.exp(1e-3 * noise.normal())},{int(N < 1e9)}" for N in SIZES for D in TOKENS]
    path.write_text("\n".join(["size,D,loss,small", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def fit_of_it(table):
    """Returns the file of a fit to it, the largest size held out and E fixed, and what was printed."""
    out, printed = table.parent / "law.json", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command.run(FitRequest(law="chinchilla", csv=str(table), columns=("N=size",), hold_out="largest_N",
                                      draws=20, fix="E=1.8", out=str(out))) == 0
    return out, printed.getvalue()


@pytest.fixture
def fitted(fit_of_it):
    return fit_of_it[0]


def test_a_fit_is_printed_with_intervals_both_methods_and_held_out_points(fit_of_it):
    path, text = fit_of_it
    lines = text.splitlines()
    assert lines[0] == "chinchilla: loss = E + A / N^alpha + B / D^beta"
    assert lines[1].startswith("Fitted to 9 points of 9 runs; 3 points held out. N 10M to 200M, D 500M to 10B")
    assert lines[3].split() == ["parameter", "value", "95%", "interval", "projection"]
    assert lines[4].split() == ["E", "1.8", "(fixed)", "1.8"]
    assert [line.split()[0] for line in lines[5:9]] == ["A", "B", "alpha", "beta"] and " to " in lines[7]
    assert lines[10].split()[:2] == ["points", "R^2"] and lines[11].startswith("fitted    9")
    assert lines[12].startswith("held out  3")
    assert "The methods predict the same: huber (objective" in text and f"Written: {path}" in text


def test_the_file_holds_what_was_fitted(fitted, table):
    values = json.loads(fitted.read_text())
    assert values["law"] == "chinchilla" and values["source"]["hold_out"] == "largest_N"
    assert values["fit"]["values"]["alpha"] == pytest.approx(0.33, abs=0.02)
    low, high = values["intervals"]["alpha"]
    assert low < 0.33 < high and len(values["draws"]["alpha"]) == 20 and values["disagreement"] < 1e-3
    assert 0.9 < values["quality"]["held out"]["r2"] < 1 and sum(values["held_out"]) == 3
    found = result.read(fitted)
    again = result.write(found, fitted.parent / "again.json")
    assert json.loads(again.read_text()) == values


def test_a_loss_is_predicted_with_its_interval(fitted, capsys):
    assert command.run(PredictRequest(fit=str(fitted), N=1e8, D=4e9)) == 0
    (text,) = capsys.readouterr().out.splitlines()
    start, low, high = (float(part) for part in text.replace("(", "").replace(",", "").split(" loss ")[1].split()[:4]
                        if part != "to")
    assert text.startswith("N = 100M, D = 4B: loss ") and "95% over runs" in text
    assert low < start < high and start == pytest.approx(loss_of(1e8, 4e9), rel=2e-3)
    assert command.run(PredictRequest(fit=str(fitted), N=1e9, D=4e9)) == 0
    assert "outside of what was fitted: N = 1B (fitted: 10M to 200M)" in capsys.readouterr().out


def test_the_best_sizes_for_a_budget_are_told(fitted, capsys):
    assert command.run(PredictRequest(fit=str(fitted), flops=6 * 1e8 * 4e9)) == 0
    text = capsys.readouterr().out
    found = result.read(fitted)
    sizes = np.geomspace(1e6, 1e10, 2001)
    losses = found.predict(Points({"run": np.full(2001, "x"), "N": sizes, "D": 4e17 / sizes, "loss": np.ones(2001)}))
    (N,) = re.findall(r"FLOPs: N = (\d+)M", text)
    assert int(N) * 1e6 == pytest.approx(sizes[losses.argmin()], rel=0.02) and "tokens a parameter" in text
    (loss,) = re.findall(r"loss ([\d.]+) ", text)
    assert float(loss) == pytest.approx(losses.min(), abs=1e-4) and text.count(" to ") >= 3


def test_a_fit_is_drawn(fitted, tmp_path, capsys):
    path = tmp_path / "law.png"
    assert command.run(PlotRequest(fit=str(fitted), out=str(path))) == 0
    assert path.read_bytes()[:4] == b"\x89PNG" and f"Written: {path}" in capsys.readouterr().out


@pytest.mark.parametrize("changes, message", [
    (dict(law=""), "--law is missing"), (dict(law="chinchila"), "Did you mean \"chinchilla\""),
    (dict(csv=""), "Give either --csv=FILE or --workdirs"), (dict(workdirs=("x",)), "Give either --csv"),
    (dict(csv="", workdirs=("runs/*",)), "--columns=N=size names columns of a table"),
    (dict(csv="", columns=(), workdirs=("nowhere/*",)), "--workdirs=nowhere/[*] is no folder"),
    (dict(columns=()), "no column 'N'.*--columns=N="), (dict(columns=("N",)), "'N' is no NAME=VALUE"),
    (dict(keep=("small=2",)), "has no row with small=2"), (dict(hold_out="biggest"), "--hold_out='biggest' is not one"),
    (dict(fix="E=x"), "--fix=E=x: 'x' is no number"), (dict(fix="F=1"), "F"), (dict(draws=1), "--draws=1 must be 0"),
    (dict(method="hubr"), "Did you mean \"huber\""), (dict(out=""), "--out is missing"),
    (dict(confidence=1.0), "--confidence=1.0 must lie"), (dict(seed=-1), "--seed=-1"),
    (dict(law="iso_depth"), "N_once"),
])
def test_bad_fits_are_told(changes, message, table, tmp_path):
    request = FitRequest(law="chinchilla", csv=str(table), columns=("N=size",), out=str(tmp_path / "x.json"))
    with pytest.raises(ValueError, match=message):
        command.run(dataclasses.replace(request, **changes))
    assert not list(tmp_path.iterdir())


def test_too_few_runs_are_told(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("N,D,loss\n1e7,1e9,3\n2e7,1e9,2.9\n4e7,2e9,2.7\n")
    with pytest.raises(ValueError, match="chinchilla"):
        command.run(FitRequest(law="chinchilla", csv=str(path), out=str(tmp_path / "x.json")))


@pytest.mark.parametrize("options, message", [
    (dict(fit="", N=1.0, D=1.0), "--fit is missing"), (dict(N=1e9), "Give --N and --D, or --flops"),
    (dict(flops=1e18, N=1e9), "leave out --N and --D"), (dict(N=-1.0, D=1e9), "--N=-1.0 must be above 0"),
    (dict(N=1e9, D=1e9, at="m=2"), "--at='m' is not one of"), (dict(N=1e9, D=1e9, at="n"), "'n' is no NAME=VALUE"),
    (dict(flops=1e18, at="loop=2"), "--at='loop' is not one of"), (dict(flops=1e18, at="n=1.5"), "whole number"),
    (dict(N=1e9, D=1e9, fit="none.json"), "none.json is not a file"),
])
def test_bad_predictions_are_told(options, message, fitted):
    with pytest.raises(ValueError, match=message):
        command.run(PredictRequest(**{"fit": str(fitted), **options}))


def test_a_law_that_reads_more_asks_for_it(fitted):
    found = result.read(fitted)
    with pytest.raises(ValueError, match="iso_depth reads N_once, N_rec, T, D, and N_once, N_rec is not given"):
        result.one_point(result.get_law("iso_depth"), {"N": 1e9, "D": 1e9})
    point = result.one_point(found.law, {"N_rec": 1e8, "N_once": 2e8, "D": 1e9, "T": 4})
    assert point["N"] == 3e8 and point["loop"] == 4


def test_bad_files_are_told(tmp_path, fitted):
    path = tmp_path / "law.json"
    for text in ("{", "[]", '{"format": "x"}', fitted.read_text().replace('"held_out": [', '"held": [')):
        path.write_text(text)
        with pytest.raises(ValueError, match="law.json cannot be read .*write it anew"):
            command.run(PlotRequest(fit=str(path), out=str(tmp_path / "x.png")))
    with pytest.raises(ValueError, match="--out is missing"):
        command.run(PlotRequest(fit=str(fitted)))
    with pytest.raises(ValueError, match="--kind='grd' is not one of"):
        command.run(PlotRequest(fit=str(fitted), out="x.png", kind="grd"))


def test_assignments_are_numbers():
    assert assignments("--fix", "t3=0, gamma=1e-1") == {"t3": 0.0, "gamma": 0.1} and assignments("--fix", "") == {}
    with pytest.raises(ValueError, match="--fix=a=inf: a must be finite"):
        assignments("--fix", "a=inf")


def test_a_newcomer_is_led():
    def start(*arguments):
        return subprocess.run([sys.executable, "-m", "mtp_jax.scaling", *arguments], cwd=ROOT, capture_output=True,
                              text=True, timeout=60)

    helped = start("fit", "--help")
    assert helped.returncode == 0 or "--hold_out" in helped.stdout
    assert all(f"--{field.name}" in helped.stdout for field in dataclasses.fields(FitRequest))
    wrong = start("predct")
    assert wrong.returncode == 1 and wrong.stderr.startswith("error: There is no action 'predct'. Did you mean")


# The report of a grid.

def write_grid(folder, widths, heads, loops):
    """Writes workdirs of a grid whose head 1 follows a law, with ten points each; later heads are 0.5 worse each."""
    noise, folders = np.random.default_rng(1), []
    for width in widths:
        for n in heads:
            for T in loops:
                model = ModelConfig(num_heads=n, num_layers=10, d_model=width, num_attention_heads=2, d_ff=2 * width,
                                    vocab_size=259, trunk_kind="looped" if T > 1 else "plain", loops=T)
                config = Config(model=model, train=TrainConfig(num_steps=100),
                                optimizer=OptimizerConfig(schedule="wsd", warmup_steps=5, decay_fraction=0.1))
                place = folder / f"w{width}n{n}T{T}"
                place.mkdir(parents=True)
                (place / "config.json").write_text(json.dumps(to_dict(config)))
                lines = []
                for step in range(10, 101, 10):
                    one = (1.0 + 4.0 * n**0.2 / width + 6.0 / (step * n**0.1)**0.5) * np.exp(2e-3 * noise.normal())
                    own = [one + 0.5 * k for k in range(n)]
                    more = {"task_loss": sum(own), "exit_share": [1 / T] * T, "loops": {
                        str(t): {"head_loss": [loss + 0.1 * (T - t) for loss in own]} for t in range(1, T + 1)}}
                    lines.append({"step": step, "split": "validation", "loss": sum(own) - 0.02 * (T > 1),
                                  "head_loss": own, **(more if T > 1 else {})})
                (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
                folders.append(place)
    return folders


def test_a_part_of_a_grid_is_reported(tmp_path, monkeypatch):
    few = [part for part in report.PARTS if part.name in ("chinchilla", "looped_step_4")]
    monkeypatch.setattr(report, "PARTS", few)
    folders = write_grid(tmp_path / "runs", (8, 16, 32), (1, 2), (1,))
    (tmp_path / "runs" / "begun").mkdir()
    text = report.report([*folders, tmp_path / "runs" / "begun"], tmp_path / "out", draws=10)
    assert text.startswith("6 runs: N = ") and "1 more had no validation line yet" in text
    assert "Fitted are the 54 validation losses of the stable phase" in text and "| 2, 1 | " in text
    assert "| chinchilla | n = 1, T = 1 | 27 | 1.000" in text and "held out the RMSE on it is" in text
    assert "- chinchilla (n = 1, T = 1): 3 runs: the intervals are too narrow" in text
    assert "- chinchilla (n = 1, T = 1), without the largest N: Too few runs for chinchilla: A and alpha need" in text
    assert "- looped_step_4 (n = 1, T = 4, each loop): no run yet." in text
    assert "chinchilla.json" in {path.name for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="None of 1 folders has a validation line"):
        report.report([tmp_path / "runs" / "begun"], tmp_path / "out")


def test_folders_without_a_validation_line_are_left_out_of_a_pattern(tmp_path, capsys):
    (run,) = write_grid(tmp_path / "runs", (8,), (2,), (1,))
    (tmp_path / "runs" / "begun").mkdir()
    request = FitRequest(workdirs=(f"{tmp_path}/runs/*",), loss="head_2", keep=("phase=stable,D>100000",))
    points = command._read(request)
    assert points.runs == (run.name,) and len(points) == 7 and set(points["head"]) == {2}
    assert f"1 folders of --workdirs={tmp_path}/runs/* have no validation line" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--keep=phase=cooling leaves no point"):
        command._read(dataclasses.replace(request, keep=("phase=cooling",)))
    with pytest.raises(ValueError, match="begun/config.json is missing"):
        command._read(dataclasses.replace(request, workdirs=(str(tmp_path / "runs" / "begun"),)))


@pytest.mark.slow
def test_a_whole_grid_is_reported(tmp_path):
    folders = write_grid(tmp_path / "runs", (8, 16, 24, 32), (1, 2, 4, 8), (1, 2, 4))
    text = report.report(folders, tmp_path / "out", draws=20)
    assert "Not fitted" not in text and text.count("| looped_total |") == 6 and text.count("rebuilt") == 4
    assert text.count("![") == len(report.PICTURES) == len(list((tmp_path / "out" / report.IMAGES).glob("*.png")))
    for n in (2, 4, 8):
        assert f"per_head_{n}: E_1 to E_{n} are" in text and "not in the order of theory" not in text


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published points beside the repository")
def test_the_published_fit_of_chinchilla_is_found_by_the_command(tmp_path):
    out = tmp_path / "law.json"
    assert command.run(FitRequest(law="chinchilla", csv=str(PUBLISHED / "chinchilla_points.csv"), draws=0, out=str(out),
                                  columns=("N=N_params,D=D_tokens",), keep=("kept_in_epoch_fit=1",))) == 0
    found = result.read(out)
    assert found.fit.values["alpha"] == pytest.approx(0.3473, abs=0.003)
    assert found.fit.values["beta"] == pytest.approx(0.3672, abs=0.003)
    assert found.fit.values["E"] == pytest.approx(1.8172, abs=0.005)
    assert found.fit.objective <= 0.0010190 and found.quality()["fitted"]["r2"] == pytest.approx(0.994, abs=0.001)
