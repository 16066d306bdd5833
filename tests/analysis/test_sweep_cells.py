"""The cells of a sweep: names, checks before anything starts, and how far a cell has come."""

import dataclasses
import functools
import json
import pathlib

import pytest

from experiments import code_bytes, paper
from mtp_jax import commands, config
from mtp_jax.analysis.grid import parse_grid
from mtp_jax.analysis.sweep_cells import check_workdirs, make_cells, num_params, standing


def cells_of(grid, *settings, experiment=code_bytes, workdir="runs/sweep"):
    return make_cells(parse_grid([grid]), settings=settings, workdir=str(workdir),
                      resolve=functools.partial(commands.read_config, experiment.get_config))


def write_cell(cell, *, step, saved=None, changes=(), written=None):
    """Writes a folder as a run leaves it: config.json, metrics to `written`, a checkpoint of `saved`."""
    folder = pathlib.Path(cell.workdir)
    (folder / "checkpoints" / str(step if saved is None else saved)).mkdir(parents=True)
    model = dataclasses.replace(cell.config.model, vocab_size=259)
    values = json.loads(config.dumps(dataclasses.replace(cell.config, model=model), version="0", corpus_hash="x"))
    for section, field, value in changes:
        values[section][field] = value
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "metrics.jsonl").write_text(json.dumps(
        {"step": step if written is None else written, "split": "train", "head_loss": [1.0]}) + "\n")


def test_a_cell_is_a_run_with_a_readable_folder():
    one, two = cells_of("config.model.num_heads=1,2", "--config.train.seed=3")
    assert (one.name, two.name) == ("num_heads=1", "num_heads=2")
    assert two.workdir == "runs/sweep/num_heads=2" and two.config.model.num_heads == 2
    assert two.settings == ("--config.train.seed=3", "--config.model.num_heads=2") and two.config.train.seed == 3
    assert two.values == {"model.num_heads": "2"}


def test_fields_of_one_name_are_told_apart_by_their_sections():
    names = [cell.name for cell in cells_of("config.train.seed=0,1;config.data.seed=5;config.model.num_heads=2")]
    assert names == ["train.seed=0,data.seed=5,num_heads=2", "train.seed=1,data.seed=5,num_heads=2"]


def test_a_name_depends_on_the_value_and_not_on_how_it_is_written():
    (first,), (second,) = cells_of("config.optimizer.learning_rate=1e-3"), cells_of(
        "config.optimizer.learning_rate=0.0010")
    assert first.name == second.name == "learning_rate=0.001"


def test_values_that_no_folder_can_have_are_cleaned_and_kept_apart():
    meshes = cells_of("config.parallel.mesh='data:1,fsdp:-1','data:1;fsdp:-1'")
    assert len({cell.name for cell in meshes}) == 2
    for cell in meshes:
        assert cell.name.startswith("mesh=data-1-fsdp--1~") and len(cell.name) < 60
    (alone,) = cells_of("config.parallel.mesh='data:1;fsdp:-1'")
    assert alone.name == meshes[1].name  # whatever else is in the grid


def test_parameters_of_an_experiment_are_axes_too():
    small, large = cells_of("config.size=1m,3m", "--config.model.num_heads=2", experiment=paper)
    assert (small.name, large.name) == ("size=1m", "size=3m")
    assert (small.config.model.d_model, large.config.model.d_model) == (128, 256)


@pytest.mark.parametrize("grid, settings, message", [
    ("config.model.num_head=1", [], 'num_head=1: .*no field.*Did you mean "num_heads"'),
    ("config.modle.num_heads=1", [], 'Did you mean "model"'),
    ("config.model.num_heads=1,two", [], "num_heads=two: .*invalid literal"),
    ("config.model.num_heads=1,0", [], r"num_heads=0: model\.num_heads=0 must be at least 1"),
    ("config.model.num_heads=1,8", [], "num_heads=8 is too large for model.num_layers=8"),
    ("config.objective.schedule=constant,deepsek", [], 'Did you mean "deepseek"'),
    ("config.optimizer.learning_rate=1e-3,0.001", [], "are the same run"),
    ("config.model.num_heads=1,2", ["--config.model.num_heads=4"], "overruled by the axis config.model.num_heads"),
    ("config.logging.tensorboard=True", ["--noconfig.logging.tensorboard"], "overruled by the axis"),
])
def test_a_cell_that_cannot_run_is_told_before_any_does(grid, settings, message):
    with pytest.raises(ValueError, match=message):
        cells_of(grid, *settings)


def test_sizes_of_one_shape_are_one_run():
    with pytest.raises(ValueError, match="--config.size=7b and --config.size=6.7b are the same run"):
        cells_of("config.size=6.7b,7b", experiment=paper)


@pytest.mark.parametrize("write, step, done", [
    (None, 0, False),
    (dict(step=1000), 1000, True),
    (dict(step=1000, saved=800), 800, False),
    (dict(step=600, saved=1000), 1000, False),  # numbers were lost: run again to have them
    (dict(step=400), 400, False),
])
def test_done_is_what_the_folder_holds(write, step, done, tmp_path):
    (cell,) = cells_of("config.model.num_heads=2", workdir=tmp_path)
    if write is not None:
        write_cell(cell, **write)
    now = standing(cell)
    assert (now.step, now.done) == (step, done)
    check_workdirs([cell])


@pytest.mark.parametrize("line, why", [(b'{"step": 5, "spl', "Unterminated"), (b"7", "has no attribute"),
                                       (b"{}", "no step"), (b"\xff\0", "Expecting value")])
def test_a_damaged_file_of_metrics_is_told_with_the_remedy(line, why, tmp_path):
    (cell,) = cells_of("config.model.num_heads=2", workdir=tmp_path)
    write_cell(cell, step=1000)
    path = pathlib.Path(cell.workdir) / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(line + b"\n" + whole)
    now = standing(cell)
    assert not now.done and now.step == 1000 and not now.records
    assert now.problem.startswith(f"{path} is damaged in line 1 (") and why in now.problem
    assert "delete the line, or start the run again" in now.problem
    path.write_bytes(whole + line)  # still being written
    assert standing(cell).done and not standing(cell).problem


def test_more_steps_make_a_done_cell_unfinished(tmp_path):
    (cell,) = cells_of("config.model.num_heads=2", workdir=tmp_path)
    write_cell(cell, step=1000)
    (longer,) = cells_of("config.model.num_heads=2", "--config.train.num_steps=1200", workdir=tmp_path)
    check_workdirs([longer])
    assert standing(cell).done and not standing(longer).done


def test_a_folder_of_another_run_is_told_before_any_cell_starts(tmp_path):
    (cell,) = cells_of("config.model.num_heads=2", workdir=tmp_path)
    write_cell(cell, step=1000, changes=[("model", "d_model", 64), ("train", "num_steps", 7)])
    with pytest.raises(ValueError, match=r"(?s)num_heads=2 has a folder.*model.d_model: .* has 64, this sweep 128"):
        check_workdirs([cell])


def test_parameters_are_counted_from_what_the_run_wrote(tmp_path):
    (cell,) = cells_of("config.model.num_heads=2", workdir=tmp_path)
    write_cell(cell, step=1000)
    layer = 4 * 128 * 128 + 3 * 128 * 384 + 2 * 128
    assert num_params(standing(cell).config) == 8 * layer + 2 * 384 * 128 + 128
