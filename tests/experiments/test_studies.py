"""The studies on text: their rules on made-up rows, their pictures, cells that they share, and one run whole."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from experiments import architectures, bytes, drafting, epochs, head_sweep, paper, size_sweep, weights
from mtp_jax.analysis.study import folder_names
from mtp_jax.checkpoints import load_params
from mtp_jax.commands import read_config
from mtp_jax.config import from_config_dict
from mtp_jax.model.language_model import num_trunk_layers
from mtp_jax.training.state import flatten_params
from tests.experiments.test_finetune import write_run
from tests.training.small_runs import ROOT, environment

STUDIES = {module.__name__.rpartition(".")[2]: module
           for module in (head_sweep, weights, bytes, drafting, size_sweep, architectures, epochs)}
SEEDS = range(5)
NOISE = (0.003, -0.002, 0.0, 0.004, -0.001)  # a seed's


def as_claimed(name, values):
    """Returns the numbers of a cell as the claims have them."""
    noise = NOISE[values["seed"] % 5]
    if name == "head_sweep":
        return {"bits_per_byte_1": 3 + 0.1 * np.log2(values["num_heads"]) + noise}
    if name == "weights":
        drafted, bits = {"constant": (1.8, 3.2), "forward": (1.7, 3.1), "reverse": (1.05, 3.0),
                         "deepseek": (1.6, 3.05)}[values["schedule"]]
        return {"tokens_per_forward_4": drafted + noise, "bits_per_byte_1": bits + 2 * noise * noise}
    if name == "bytes":
        top = {"code": 1.2, "prose": 1.0}[values["corpus"]]
        return {"bits_per_byte_1": 3.0, **{f"tokens_per_forward_{k}": 1 + (top + noise) * (1 - 0.5 ** (k - 1))
                                           for k in (1, *bytes.TRIED[values["num_heads"]])}}
    drafted = {"jointly": 1.7, "added": 1.5, "added, twice the budget": 1.6}.get(values["heads"])
    return {"bits_per_byte_1": 3.0, **{name: drafted and drafted + noise for name in drafting.BOTH}}


def rows_of(name, change=lambda row: row):
    return [change({**cell.values, **as_claimed(name, cell.values)}) for cell in STUDIES[name].study().cells]


def swap(key, first, second):
    """Returns a change of rows that gives two groups each other's name."""
    def change(row):
        names = {first: second, second: first}
        return {**row, key: names.get(row[key], row[key])}
    return change


@pytest.mark.parametrize("name, key, first, second", [
    ("head_sweep", "num_heads", 1, 4), ("head_sweep", "num_heads", 1, 2), ("head_sweep", "num_heads", 2, 4),
    ("weights", "schedule", "forward", "reverse"), ("drafting", "heads", "jointly", "added")])
def test_the_rules_tell_the_claim_from_its_opposite(name, key, first, second):
    (claim,) = STUDIES[name].study().claims
    assert claim.judge(rows_of(name)).outcome == "confirmed"
    verdict = claim.judge(rows_of(name, swap(key, first, second)))
    assert verdict.outcome == "not confirmed", verdict


def test_the_rule_of_bytes_needs_order_rise_and_saturation():
    (claim,) = bytes.study().claims
    assert claim.judge(rows_of("bytes")).outcome == "confirmed"
    less = [{**row, "tokens_per_forward_4": row["tokens_per_forward_4"] - 0.5} if (
        row["corpus"], row["num_heads"]) == ("code", 4) else row for row in rows_of("bytes")]
    assert claim.judge(less).outcome == "not confirmed"
    straight = [{**row, **{f"tokens_per_forward_{k}": 1 + 0.2 * (k - 1) ** 1.2 + NOISE[row["seed"]]
                           for k in bytes.TRIED[row["num_heads"]]}} for row in rows_of("bytes")]
    assert claim.judge(straight).outcome == "not confirmed"


@pytest.mark.parametrize("name, column", [("head_sweep", "bits_per_byte_1"), ("weights", "tokens_per_forward_4"),
                                          ("bytes", "tokens_per_forward_4"), ("drafting", "tokens_per_forward_4")])
def test_where_seeds_disagree_nothing_is_decided(name, column):
    (claim,) = STUDIES[name].study().claims
    drawn = np.random.default_rng(1)

    def noisy(row):
        return row if row.get(column) is None else {**row, column: row[column] + 3 * drawn.standard_normal()}
    assert claim.judge(rows_of(name, noisy)).outcome == "not decidable at this size"


def test_a_curriculum_that_keeps_less_than_half_of_the_gain_is_not_confirmed():
    (claim,) = weights.study().claims

    def less(row):
        return {**row, "tokens_per_forward_4": 1.3 + NOISE[row["seed"]]} if row["schedule"] == "forward" else row
    assert claim.judge(rows_of("weights", less)).outcome == "not confirmed"


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_cell_is_a_run_that_fits(name):
    study = STUDIES[name].study()
    study.validate()
    for cell in study.cells[:8]:
        if "{" in "".join(cell.settings):
            continue
        module = importlib.import_module(f"experiments.{cell.experiment}")
        read_config(module.get_config, cell.settings).validate()
    assert all("95 %" in claim.rule for claim in study.claims)


@pytest.mark.parametrize("module", [head_sweep, size_sweep, architectures, weights])
def test_at_the_paper_s_size_data_and_recipe_are_those_of_the_paper(module):
    """Nothing of the small corpus is left, which a prepared one would be refused beside."""
    found, full = from_config_dict(module.get_config(size="7b")), from_config_dict(paper.get_config("7b"))
    assert (found.data, found.optimizer, found.train) == (full.data, full.optimizer, full.train)
    assert found.model.num_layers == 32


@pytest.mark.parametrize("heads, trunk", [(8, 24), (16, 16), (32, 16)])
def test_the_paper_s_byte_models_have_a_trunk(heads, trunk):
    config = from_config_dict(bytes.get_config(num_heads=heads, size="7b"))
    config.validate()
    assert num_trunk_layers(config.model) == trunk and config.model.unembedding == "replicated"
    assert (config.data.seq_len, config.data.batch_size * 8192, config.train.num_steps) == (8192, 12 * 2**20, 25_000)


def test_other_numbers_of_epochs_are_refused():
    with pytest.raises(ValueError, match="config.epochs='2' is not one of"):
        epochs.get_config(2)


def test_studies_share_their_runs():
    folders = {name: set(folder_names(module.study()).values()) for name, module in STUDIES.items()}
    for name, count in (("bytes", 5), ("weights", 5), ("drafting", 5), ("size_sweep", 6), ("architectures", 4)):
        assert len(folders["head_sweep"] & folders[name]) == count, name


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "bytes" else (pytest.mark.slow,))
                                  for name in STUDIES])
def test_pictures(name, tmp_path):
    study = STUDIES[name].study()
    made = {name: 1.0 + number / 7 for number, name in enumerate(("bits_per_byte_1", "expected_accepted_length"))}
    rows = rows_of(name) if study.claims else [{**cell.values, **made} for cell in study.cells]
    (path,) = study.plot(rows, epath.Path(tmp_path))
    assert path.read_bytes().startswith(b"\x89PNG") and path.name == f"{name}.png"


def test_heads_are_added_to_what_stays(tmp_path):
    write_run(tmp_path, model__num_heads=1, model__num_layers=3, train__num_steps=7, optimizer__learning_rate=0.5)
    config = from_config_dict(drafting.get_config(str(tmp_path), 4))
    config.validate()
    assert config.model.num_layers == 6 and config.init_from.heads == (1, 1, 1, 1)
    assert config.objective.head_weights == (0, 1, 1, 1) and config.train.trainable == ("heads/*",)
    assert (config.train.num_steps, config.optimizer.learning_rate) == (7, 0.5)
    with pytest.raises(ValueError, match="config.num_heads=1 adds no head"):
        drafting.get_config(str(tmp_path), 1)


@pytest.mark.slow
def test_a_study_from_the_command_to_its_report(tmp_path):
    small = ["train.num_steps=6", "optimizer.warmup_steps=1", "data.validation_batches=1", "data.source=stdlib",
             "data.path=", "data.field=text", "data.validation_path=", "data.seq_len=128"]
    command = [sys.executable, "-m", "mtp_jax.study", "--experiment=drafting", f"--workdir={tmp_path}", "--seeds=3",
               *(f"--config.{setting}" for setting in small)]
    for told in ([], ["--report"]):
        done = subprocess.run([*command, *told], cwd=ROOT, env=environment(), capture_output=True, text=True,
                              timeout=600)
        assert done.returncode == 0, done.stderr
    assert "**S7: " in done.stdout and "![" in done.stdout
    (folder,) = [path for path in tmp_path.iterdir() if path.name != "cells"]
    whole = json.loads((folder / "study.json").read_text())
    cells = {cell["name"]: tmp_path / "cells" / cell["folder"] for cell in whole["cells"]}
    before, after = (flatten_params(load_params(cells[name]).params) for name in (
        "heads=none, before added,seed=3", "heads=added,seed=3"))
    for path, leaf in before.items():  # what trained before stays bit for bit; new heads have left head 1
        if path.startswith("heads"):
            assert np.array_equal(after[path][0], leaf[0]), path
            assert not np.array_equal(after[path][1], leaf[0]), path
        else:
            assert np.array_equal(after[path], leaf), path
