"""What goes on from a run: the trunk stays, heads are stripped or fresh, the recipe is in proportion."""

import json

import numpy as np
import pytest

from experiments import finetune
from mtp_jax.checkpoints import load_params
from mtp_jax.commands import read_config
from mtp_jax.config import dumps, flatten, from_config_dict
from mtp_jax.convert import hf
from mtp_jax.convert.command import convert
from mtp_jax.model import ModelSpec, num_trunk_layers
from mtp_jax.training.prepare import prepare
from mtp_jax.training.state import flatten_params
from tests.convert.models import make_arrays, make_config, make_model, options
from tests.training.small_runs import small, write_corpus


def write_run(folder, **changes):
    """Writes the config.json of a run and returns its config."""
    config = small("corpus", **{"model__num_heads": 4, "model__num_layers": 8, "model__vocab_size": 259, **changes})
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(dumps(config, version="1", corpus_hash="x"))
    return config


@pytest.mark.parametrize("head_kind, extra", [("parallel", 0), ("causal", 2), ("anticausal", 0), ("linear", 0)])
@pytest.mark.parametrize("num_heads", [1, 3, 4, 6])
def test_the_trunk_stays_as_it_is(head_kind, extra, num_heads, tmp_path):
    source = write_run(tmp_path, model__head_kind=head_kind, model__extra_trunk_layers=extra)
    config = from_config_dict(finetune.get_config(str(tmp_path), num_heads))
    config.validate()
    assert config.model.num_heads == num_heads
    assert num_trunk_layers(config.model) == num_trunk_layers(source.model) == (8 if head_kind == "linear" else
                                                                                4 + extra)
    shapes = [flatten_params(ModelSpec.create(c.model).shapes) for c in (source, config)]
    trunks = [{path: leaf.shape for path, leaf in s.items() if path.startswith("trunk")} for s in shapes]
    assert trunks[0] == trunks[1] != {}


def test_heads_beyond_the_sources_are_fresh_and_others_are_taken_over(tmp_path):
    write_run(tmp_path, objective__head_weights=(1.0, 0.5, 0.5, 0.5))
    heads = {n: finetune.get_config(str(tmp_path), n).init_from.heads for n in (1, 4, 6)}
    assert heads == {1: (), 4: (), 6: (1, 2, 3, 4, "fresh", "fresh")}
    weights = {n: finetune.get_config(str(tmp_path), n).objective.head_weights for n in (1, 4, 6)}
    assert weights == {1: (), 4: (1.0, 0.5, 0.5, 0.5), 6: ()}


def test_the_recipe_is_the_papers_for_code_contests_in_proportion(tmp_path):
    write_run(tmp_path, train__num_steps=25_000, optimizer__learning_rate=3e-4, optimizer__warmup_steps=2000)
    config = finetune.get_config(str(tmp_path))
    assert config.train.num_steps == 13_000 and config.optimizer.warmup_steps == 400
    assert config.optimizer.learning_rate == pytest.approx(5e-5)
    assert (config.optimizer.clip_norm, config.optimizer.decay_ratio) == (0.1, 0.004)


def test_everything_else_is_the_sources(tmp_path):
    source = write_run(tmp_path, model__qk_norm=True, data__seq_len=24, optimizer__b2=0.9, compute__remat="full")
    config = flatten(from_config_dict(finetune.get_config(str(tmp_path), 4)))
    differing = {name for name, value in flatten(source).items() if config[name] != value}
    assert differing == {"init_from.path", "optimizer.learning_rate", "optimizer.decay_ratio", "optimizer.clip_norm",
                         "optimizer.warmup_steps", "train.num_steps", "logging.log_every", "logging.progress"}


@pytest.mark.parametrize("text, message", [("{", "is damaged"), (json.dumps({"model": {"num_head": 1}}), "num_heads")])
def test_a_config_that_cannot_be_read_is_told(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        finetune.get_config(str(tmp_path))


@pytest.mark.slow
def test_the_first_step_starts_from_the_sources_parameters(tmp_path):
    num_heads = 3
    (tmp_path / "corpus").mkdir()
    source = small(write_corpus(tmp_path / "corpus"))
    assert prepare(source, tmp_path / "source").train() == 0
    config = finetune.get_config(str(tmp_path / "source" / "checkpoints" / "8"), num_heads)
    config.logging.tensorboard = False
    config.optimizer.learning_rate = 1e-30  # so that the last step's parameters are the first's
    config.optimizer.warmup_steps = 1
    assert prepare(from_config_dict(config), tmp_path / "run").train() == 0
    before, after = (flatten_params(load_params(tmp_path / name).params) for name in ("source", "run"))
    for path, leaf in before.items():
        new = after[path][:2] if path.startswith("heads/") else after[path]
        np.testing.assert_array_equal(new, leaf, err_msg=path)
    assert after["heads/mlp/gate"].shape[0] == num_heads


@pytest.mark.parametrize("kind, num_heads, heads, layers", [
    ("parallel", 4, (1, 1, 1, 1), 6), ("causal", 2, (1, "fresh"), 4), ("medusa", 3, (1, "fresh", "fresh"), 3),
    ("parallel", 1, (), 3)])
def test_an_imported_model_gets_heads_and_a_recipe_of_its_own(kind, num_heads, heads, layers, tmp_path):
    plain = make_config(num_heads=1, num_layers=3)
    (tmp_path / "hf").mkdir()
    hf.write(make_model(plain), tmp_path / "hf", options("run", tmp_path / "hf", "hf"))
    convert(options(tmp_path / "hf", tmp_path / "llama", "workdir", src_format="hf", head_kind=kind))
    config = from_config_dict(finetune.get_config(str(tmp_path / "llama"), num_heads))
    config.validate()
    assert config.init_from.heads == heads and (config.model.num_heads, config.model.num_layers) == (num_heads, layers)
    assert (config.data.batch_size, config.data.seq_len, config.train.num_steps) == (8, 32, 1000)
    assert (config.optimizer.learning_rate, config.optimizer.clip_norm) == (1e-4, 1.0)


@pytest.mark.slow
def test_heads_are_added_to_a_model_from_elsewhere(tmp_path):
    """The README's example: only the heads train, and the new one starts as head 1."""
    arrays = make_arrays(make_config(num_heads=1, num_layers=3))
    (tmp_path / "hf").mkdir()
    hf.write(make_model(make_config(num_heads=1, num_layers=3), arrays), tmp_path / "hf",
             options("run", tmp_path / "hf", "hf"))
    convert(options(tmp_path / "hf", tmp_path / "llama", "workdir", src_format="hf"))
    (tmp_path / "corpus").mkdir()
    settings = ["--config.data.source=files", f"--config.data.path={write_corpus(tmp_path / 'corpus')}",
                "--config.train.trainable=('heads/*',)", "--config.train.num_steps=2",
                "--config.optimizer.warmup_steps=1", "--config.logging.tensorboard=False",
                "--config.optimizer.learning_rate=1e-7"]
    config = read_config(lambda: finetune.get_config(str(tmp_path / "llama"), 2), settings)
    assert prepare(config, tmp_path / "run").train() == 0
    after = flatten_params(load_params(tmp_path / "run").params)
    gate = np.asarray(after["heads/mlp/gate"])
    assert gate.shape[0] == 2 and not np.array_equal(gate[0], gate[1])  # they have trained, each on its own target
    np.testing.assert_allclose(gate, np.repeat(arrays["heads/mlp/gate"], 2, axis=0), atol=1e-6)
    np.testing.assert_array_equal(after["trunk/mlp/gate"], arrays["trunk/mlp/gate"])
