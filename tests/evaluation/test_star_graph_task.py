"""Paths on star graphs: right ones count, the hard node by itself, and given paths are asked for node by node."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import star_graph as experiment
from mtp_jax.config import EvaluationConfig, from_dict, to_dict
from mtp_jax.data.tasks.star_graph import StarGraph, held_out_examples
from mtp_jax.decoding.load import load_model, read_config
from mtp_jax.evaluation.command import evaluate
from mtp_jax.evaluation.likelihood import Reading, Scorer
from mtp_jax.evaluation.request import Request
from mtp_jax.evaluation.tasks.star_graph import TASK, forced, trained_on
from tests.evaluation import toy

OPTIONS = StarGraph(arms=2, length=3, nodes=70, held_out=12)  # names of two characters


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A model that was never trained, in the workdir of a run on star graphs."""
    folder = toy.write_model(tmp_path_factory.mktemp("model") / "run")
    config = read_config(folder)
    data = dataclasses.replace(config.data, source="star_graph", options="arms=2,length=3,nodes=70,held_out=12")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | to_dict(dataclasses.replace(config, data=data))))
    return folder


def score(workdir, tmp_path, texts):
    """Evaluates a file of completions; returns the metrics."""
    file, output = tmp_path / "said.jsonl", tmp_path / "result.json"
    file.write_text("".join(json.dumps({"task_id": f"star_graph/{number}", "completion": text}) + "\n"
                            for number, text in enumerate(texts)))
    evaluate(EvaluationConfig(workdir=str(workdir), task="star_graph", completions=str(file), output=str(output)))
    return json.loads(output.read_text())["metrics"]


def test_paths_and_their_hard_nodes_are_counted(workdir, tmp_path):
    answers = [answer for _, answer in held_out_examples(OPTIONS)]
    assert score(workdir, tmp_path, answers) == {"accuracy": 1, "hard_node_accuracy": 1, "chance": 0.5}
    late = [answer[:4] + "--" for answer in answers[:6]] + [answer + answer[-1] for answer in answers[6:]]
    assert score(workdir, tmp_path, late) == {"accuracy": 0, "hard_node_accuracy": 1, "chance": 0.5}
    early = [answer[:2] + "-" + answer[3:] for answer in answers[:9]] + answers[9:]
    assert score(workdir, tmp_path, early) == {"accuracy": 0.25, "hard_node_accuracy": 0.25, "chance": 0.5}


@pytest.mark.slow
def test_a_model_writes_and_is_given_paths(workdir, tmp_path):
    output = tmp_path / "result.json"
    evaluate(EvaluationConfig(workdir=str(workdir), task="star_graph", output=str(output), limit=5, heads=1))
    result = json.loads(output.read_text())
    assert len(result["samples"]) == 5 and len(result["node_accuracy_forced"]) == 3
    assert result["metrics"]["hard_node_accuracy_forced"] == result["node_accuracy_forced"][1]
    assert result["settings"]["max_new_tokens"] == 7  # one more than a path has


def test_forced_nodes_are_those_that_head_1_finds_likeliest(workdir, monkeypatch):
    request = Request(EvaluationConfig(workdir=str(workdir), task="star_graph"), {}, model=load_model(workdir, heads=1))
    problems = TASK.problems(request)
    right = np.random.default_rng(0).random((len(problems), 6)) < 0.7  # six characters are three nodes

    def read(self, rows):
        tops = [np.append(row[1:-6], np.where(own, row[-6:], 0)) for row, own in zip(rows, right)]
        return [Reading(logprob={}, top={1: top}) for top in tops]

    monkeypatch.setattr(Scorer, "read", read)
    assert (forced(request, problems, OPTIONS) == right.reshape(-1, 3, 2).all(axis=2)).all()


def test_a_run_on_other_data_is_refused(tmp_path):
    folder = toy.write_model(tmp_path / "run")
    with pytest.raises(ValueError, match="needs a run with data.source=star_graph"):
        trained_on(Request(EvaluationConfig(workdir=str(folder), task="star_graph"), {}))


def rows_of(paths):
    """Returns a study's rows of {n: accuracies by seed}."""
    return [{"num_heads": n, "seed": seed, "accuracy": value} for n, values in paths.items()
            for seed, value in enumerate(values)]


@pytest.mark.parametrize("paths, outcome", [
    ({1: [.5, .52, .48], 2: [.5, .5, .5], 4: [.9, .95, 1]}, "confirmed"),
    ({1: [.5, .52, .48], 2: [.9, .95, 1], 4: [.5, .5, .5]}, "confirmed"),
    ({1: [.5, .52, .48], 2: [.5, .5, .5], 4: [.5, .6, .49]}, "not decidable at this size"),
    ({1: [.5, .52, .48], 2: [.5, .5, .5], 4: [.5, 1, .6]}, "not confirmed"),  # one lucky seed
    ({1: [.7, .9, .8], 2: [1, 1, 1], 4: [1, 1, 1]}, "not confirmed"),  # n = 1 is no longer near chance
    ({1: [.2, .2, .2], 2: [.9, .9, .9], 4: [.9, .9, .9]}, "not confirmed"),  # n = 1 cannot go along the edges
])
def test_the_rule_of_the_claim(paths, outcome, monkeypatch):
    monkeypatch.setattr(experiment, "ARMS", 2)
    assert experiment.judge(rows_of(paths)).outcome == outcome


def test_the_study_fits_together_and_all_n_have_the_same_settings():
    study = experiment.study(seeds=(0, 1))
    study.validate()
    assert [cell.values["num_heads"] for cell in study.cells] == [1, 2, 4] * 2
    assert len({tuple(setting for setting in cell.settings if "num_heads" not in setting)
                for cell in study.cells}) == 2


def test_the_small_setting_is_valid_and_reads_each_example_once():
    from mtp_jax.config import from_config_dict
    from mtp_jax.data.tasks.options import read_options

    for size in ("small", "14m"):
        config = from_config_dict(experiment.get_config(size=size))
        options = read_options(StarGraph, config.data.options, "star_graph")
        assert config.data.seq_len == options.tokens
        if size == "small":
            assert options.samples == config.train.num_steps * config.data.batch_size
    assert from_dict(to_dict(config)) == config


def test_the_picture_is_drawn(tmp_path):
    rows = [row | {"hard_node_accuracy": row["accuracy"]} for row in rows_of({1: [.3, .4], 2: [1, 1], 4: [.5, .3]})]
    path, = experiment.plot(rows, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
