"""The tasks choice_points and information on a run: numbers that fit together, data left out, errors, and pictures."""

import json

import numpy as np
import pytest

from experiments import choice_points, information
from mtp_jax.analysis import choice_points as choice_plot
from mtp_jax.analysis import information as information_plot
from mtp_jax.config import EvaluationConfig
from mtp_jax.decoding.load import load_model
from mtp_jax.evaluation import command
from mtp_jax.evaluation.likelihood import Scorer
from mtp_jax.evaluation.tasks.information import draw_positions
from tests.evaluation.toy import WINDOW, write_model

PNG = b"\x89PNG"
TEXT = "the fox and the hen went to the well, and the well was dry. " * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workdir with an untrained model, and a text beside it."""
    place = tmp_path_factory.mktemp("run")
    (place / "text.txt").write_text(TEXT)
    return write_model(place / "run")


def evaluate(folder, task, **flags):
    """Returns what the task writes."""
    flags.setdefault("data", str(folder.parent / "text.txt"))
    command.evaluate(EvaluationConfig(workdir=str(folder), task=task, **flags))
    return json.loads((folder / "eval" / f"{task}.json").read_text())


def read(folder, numbers):
    """Returns rows of the text, a window each, and the losses of head 1 on them."""
    ids = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32)
    rows = [np.concatenate([[256], ids[i * (WINDOW - 1):(i + 1) * (WINDOW - 1)]]).astype(np.int32) for i in numbers]
    return rows, [-reading.logprob[1] for reading in Scorer(load_model(folder)).read(rows)]


def test_choice_points_of_a_run(folder):
    found = evaluate(folder, "choice_points", set=("rows=6",))
    metrics, kinds = found["metrics"], found["kinds"]
    assert found["settings"]["n"] == 4 and found["settings"]["rows"] == 6
    assert {"first", "second", "third", "later", "space", "sign"} >= set(kinds) >= {"first", "later", "space"}
    for share in ("share_of_steps", "share_of_next_token_loss", "share_of_n_token_loss"):
        assert sum(entry[share] for entry in kinds.values()) == pytest.approx(1)
    assert sum(entry["steps"] for entry in kinds.values()) == 6 * (WINDOW - 2 * 4 + 1)
    weighed = sum(metrics[f"emphasis_{kind}"] * entry["share_of_next_token_loss"] for kind, entry in kinds.items())
    assert weighed == pytest.approx(metrics["emphasis"])
    for kind in kinds:  # the weight of a step is made of its credits
        assert metrics[f"emphasis_{kind}"] == pytest.approx(
            np.dot([4, 3, 2, 1], found["credits"][kind]) / (4 * found["credits"][kind][0]))
        low, high = found["intervals"][f"emphasis_{kind}"]
        assert low <= metrics[f"emphasis_{kind}"] <= high
    rows, losses = read(folder, range(6))
    blanks = [(number, t) for number, row in enumerate(rows) for t in range(4, WINDOW - 3) if row[t] == ord(" ")]
    assert kinds["space"]["steps"] == len(blanks)
    assert kinds["space"]["loss"] == pytest.approx(np.mean([losses[number][t - 1] for number, t in blanks]), rel=1e-5)
    assert len(found["example"]["text"]) == len(found["example"]["weight_over_n"]) == WINDOW - 7
    assert choice_plot.plot_run(folder).read_bytes().startswith(PNG)


def test_information_of_a_run(folder):
    found = evaluate(folder, "information", set=("positions=10",))
    metrics = found["metrics"]
    assert metrics["positions"] == 10 == len(found["samples"]) and metrics["covered"] == pytest.approx(1)
    rows, losses = read(folder, range(10))
    places = draw_positions(rows, 10, WINDOW, seed=0)
    for place, (name, ahead) in zip((0, 1, 9, 9), (("loss_x", 0), ("loss_y_given_x", 1)) * 2):
        number = next(i for i, row in enumerate(rows) if row is places[place][0])
        assert found["samples"][place][name] == pytest.approx(losses[number][places[place][1] - 1 + ahead], abs=1e-4)
    assert metrics["lemma"] < 1e-9 and metrics["mutual_information"] >= 0 and metrics["head_2_divergence"] > 0
    assert metrics["loss_y"] - metrics["loss_y_given_x"] == pytest.approx(metrics["relative_information"])
    assert metrics["loss_x"] == pytest.approx(metrics["loss_x_given_y"] + metrics["relative_information"])
    assert information_plot.plot_run(folder).read_bytes().startswith(PNG)
    one = evaluate(folder, "information", set=("positions=4", "branches=200"), heads=1)["metrics"]
    assert "head_2_loss" not in one and one["covered"] < 1


@pytest.mark.parametrize("task, flags, told", [
    ("choice_points", dict(set=("rows=0",)), "rows=0 must be at least 1"),
    ("information", dict(set=("branches=300",)), "branches=300 must lie in 2..259"),
    ("information", dict(set=("positions=0",)), "positions=0 must be at least 1"),
    ("information", dict(window=20), "no text of 32 tokens"),
    ("choice_points", dict(data="nowhere"), "does not exist")])
def test_bad_input(folder, task, flags, told):
    with pytest.raises(ValueError, match=told):
        evaluate(folder, task, **flags)


def test_heads_that_see_the_tokens_between_have_no_such_weights(tmp_path):
    folder = write_model(tmp_path / "run", head_kind="sequential", num_heads=2, num_layers=2)
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(ValueError, match="'sequential'"):
        evaluate(folder, "choice_points")


def test_pictures_need_an_evaluation(tmp_path):
    for module in (choice_plot, information_plot):
        with pytest.raises(ValueError, match="run python -m mtp_jax.evaluate"):
            module.plot_run(tmp_path)


def made_rows(change):
    """Returns rows of two studies with noise, five seeds; `change` is what the claims rest on."""
    random = np.random.default_rng(0)
    for seed in range(5):
        for n in (1, 2, 4):
            noise = 0.01 * random.normal()
            yield {"num_heads": n, "seed": seed, "emphasis": 1.2, "emphasis_first": 1.2 + change + noise,
                   "emphasis_later": 1.2 - change + noise, "loss_y": 2.0,
                   "relative_information": 0.4 + change * (n > 1) + noise,
                   "mutual_information": 0.4, "loss_y_given_x": 1.6, "head_2_loss": None if n == 1 else 2.1}


@pytest.mark.parametrize("module", [choice_points, information])
@pytest.mark.parametrize("change, outcome", [(0.2, "confirmed"), (-0.2, "not confirmed"),
                                             (0.0, "not decidable at this size")])
def test_the_rules_are_applied(module, change, outcome, tmp_path):
    study = module.study()
    study.validate()
    rows = [row for row in made_rows(change) if row["num_heads"] in module.HEADS]
    for claim in study.claims:
        verdict = claim.judge(rows)
        assert verdict.outcome == outcome, verdict
    assert all(path.read_bytes().startswith(PNG) for path in study.plot(rows, tmp_path))


def test_the_studies_share_the_cells_of_head_sweep():
    from experiments import head_sweep
    from mtp_jax.analysis.study import folder_names

    known = set(folder_names(head_sweep.study()).values())
    for module in (choice_points, information):
        assert set(folder_names(module.study()).values()) <= known
