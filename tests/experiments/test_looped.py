"""Looped trunks: the settings of both stages, the study's rules on made-up rows, its picture, and Stage II whole."""

import json

import numpy as np
import pytest
from etils import epath

from experiments import looped
from mtp_jax.checkpoints import load_params
from mtp_jax.commands import read_config
from mtp_jax.config import dumps, flatten, from_config_dict
from mtp_jax.training.prepare import prepare
from mtp_jax.training.state import flatten_params
from tests.training.small_runs import small, write_corpus


def run_of(folder, **changes):
    """Writes the config.json of a looped run and returns its config."""
    config = small("corpus", **{"model__vocab_size": 259, "model__trunk_kind": "looped", "model__loops": 3, **changes})
    (folder / "config.json").write_text(dumps(config, version="1", corpus_hash="x"))
    return config


def row(n, loops, stage, losses, *, span=2.0, worse=0.1):
    """Returns a made-up row of the study."""
    found = {"num_heads": n, "loops": loops, "stage": stage, "seed": 1, "head_loss_1": losses[-1]}
    if loops > 1:
        for t, loss in enumerate(losses, 1):
            found |= {f"head_1_loop_{t}": loss, f"exit_{t}": 1 / loops, f"head_1_nats@loops={t}": loss}
    if (n, loops) == (1, 4):
        for number, q in enumerate(looped.THRESHOLDS):
            share = number / (len(looped.THRESHOLDS) - 1)
            found |= {f"loops@q={q:g}": 1.2 + span * share, f"head_1_nats@q={q:g}": losses[-1] + worse * (1 - share)}
    return found


def rows_of(losses=(0.4, 0.35, 0.33, 0.334), **changes):
    return [row(cell.values["num_heads"], cell.values["loops"], cell.values["stage"], losses[:cell.values["loops"]],
                **changes) for cell in looped.study().cells]


@pytest.mark.parametrize("losses, outcome", [
    ((0.4, 0.35, 0.33, 0.334), "confirmed"), ((0.4, 0.35, 0.33, 0.336), "not confirmed"),  # up by 4, by 6 thousandths
    ((0.4, 0.403, 0.402, 0.399), "not confirmed"), ((0.4, 0.399, 0.402, 0.4), "not confirmed")])
def test_the_rule_of_the_loops(losses, outcome):
    first, _ = looped.study().claims
    assert first.judge(rows_of(losses)).outcome == outcome


@pytest.mark.parametrize("changes, outcome", [({}, "confirmed"), ({"span": 0.4}, "not confirmed"),
                                              ({"span": -2.0}, "not confirmed"), ({"worse": -0.1}, "not confirmed")])
def test_the_rule_of_early_exit(changes, outcome):
    _, second = looped.study().claims
    assert second.judge(rows_of(**changes)).outcome == outcome


def test_every_first_cell_is_a_run_that_fits_and_the_picture_is_drawn(tmp_path):
    study = looped.study()
    study.validate()
    assert [len(wave) for wave in study.waves()] == [5, 1]
    for cell in study.cells:
        if cell.values["stage"] == "I":
            config = read_config(looped.get_config, cell.settings)
            config.validate()
            assert (config.model.num_heads, config.model.loops) == (cell.values["num_heads"], cell.values["loops"])
            assert bool(cell.evaluate) == ((config.model.num_heads, config.model.loops) == (1, 4))
    (path,) = study.plot(rows_of(), epath.Path(tmp_path))
    assert path.read_bytes().startswith(b"\x89PNG") and path.name == "looped.png"


def test_what_is_measured_of_a_run(tmp_path):
    loops = {str(t): {"head_loss": [2.0 - t / 10]} for t in range(1, 5)}
    record = {"split": "validation", "step": 1, "head_loss": [1.6], "loops": loops,
              "exit_share": [t / 10 for t in range(1, 5)]}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "early_exit.json").write_text(json.dumps({"metrics": {"loops@q=0.5": 1.5}}))
    assert looped.measure(epath.Path(tmp_path)) == {
        "head_loss_1": 1.6, "loops@q=0.5": 1.5, **{f"head_1_loop_{t}": 2.0 - t / 10 for t in range(1, 5)},
        **{f"exit_{t}": t / 10 for t in range(1, 5)}}


def test_stage_two_is_the_run_with_its_gate_alone(tmp_path):
    source = run_of(tmp_path, model__num_heads=2, train__num_steps=40, data__seq_len=24)
    config = from_config_dict(looped.get_config(gate_of=str(tmp_path)))
    config.validate()
    changed = {name for name, value in flatten(source).items() if flatten(config)[name] != value}
    assert {"objective.loop_objective", "init_from.path", "train.trainable", "train.num_steps"} <= changed
    assert changed <= {"objective.loop_objective", "objective.head_weights", "init_from.path", "train.trainable",
                       "train.num_steps", "train.checkpoint_every", "train.validate_every", "optimizer.schedule",
                       "optimizer.warmup_steps", "train.seed"}
    assert (config.train.trainable, config.train.num_steps, config.model.loops) == (("gate/*",), 10, 3)
    assert config.objective.head_weights == (1.0, 0.0)


def test_a_run_without_a_gate_has_no_second_stage(tmp_path):
    run_of(tmp_path, model__loops=1)
    with pytest.raises(ValueError, match="is a run of model.loops=1, which has no exit gate"):
        looped.get_config(gate_of=str(tmp_path))
    with pytest.raises(ValueError, match="config.size='375m'.*Did you mean \"374m\""):
        looped.get_config("375m")


@pytest.mark.parametrize("size", ["53m", "1.4b"])
def test_the_sources_sizes(size):
    config = from_config_dict(looped.get_config(size, loops=8))
    config.validate()
    assert (config.model.trunk_kind, config.model.loops, config.model.vocab_size) == ("looped", 8, 49_152)
    assert (config.optimizer.learning_rate, config.objective.exit_entropy) == (3e-4, 0.1)


@pytest.mark.slow
def test_stage_two_moves_the_gate_and_nothing_else(tmp_path):
    (tmp_path / "corpus").mkdir()
    source = small(write_corpus(tmp_path / "corpus"), model__trunk_kind="looped", model__loops=3)
    assert prepare(source, tmp_path / "one").train() == 0
    config = looped.get_config(gate_of=str(tmp_path / "one"))
    config.train.num_steps = 3
    assert prepare(from_config_dict(config), tmp_path / "two").train() == 0
    before, after = (flatten_params(load_params(tmp_path / name).params) for name in ("one", "two"))
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == {"gate/kernel", "gate/bias"}
