"""Parameters of an experiment's get_config as flags: read first, overridden after, told in --help."""

import json
import sys

import pytest

from tests.training.small_runs import run

SHOW = """
import json, sys
from absl import flags
from experiments import {module}
from mtp_jax import commands
from mtp_jax.config import from_config_dict, to_dict

{code}
experiment = commands.define_experiment({module}.get_config)
flags.FLAGS(sys.argv)
print(json.dumps([to_dict(from_config_dict(experiment.config.value)), to_dict(experiment.default)]))
"""
OWN = """
of_demo = code_bytes.get_config
def get_config(rows=3, rate=0.5, tied=False):
    config = of_demo()
    config.data.batch_size, config.optimizer.learning_rate, config.model.tie_embedding = rows, rate, tied
    return config
code_bytes.get_config = get_config
"""


def show(module, *arguments, code=""):
    """Returns (config, default) as dicts of an experiment with these arguments, or its error message."""
    done = run([sys.executable, "-c", SHOW.format(module=module, code=code), *arguments])
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("arguments, width, steps", [
    ([], 1024, 10_850),
    (["--config.size=13b"], 5120, 25_000),
    (["--config.size", "1m"], 128, 100_000),
    (["--config.size", "7B", "--config.recipe", "code_7b_1t"], 4096, 136_240),
    (["--config.model.num_heads", "2", "-config.size=1m"], 128, 100_000),
])
def test_a_parameter_decides_before_the_settings(arguments, width, steps):
    config, default = show("paper", *arguments)
    assert (config["model"]["d_model"], config["train"]["num_steps"]) == (width, steps)
    assert (default["model"]["d_model"], default["train"]["num_steps"]) == (width, steps)


@pytest.mark.parametrize("order", [1, -1])
def test_a_path_goes_over_what_the_parameter_set_in_any_order(order):
    config, default = show("paper", *["--config.size=1m", "--config.model.d_model=64"][::order])
    assert config["model"]["d_model"] == 64 and config["model"]["num_layers"] == 5
    assert default["model"]["d_model"] == 128
    assert "size" not in config


def test_a_parameter_has_the_type_of_its_default():
    config, _ = show("code_bytes", "--config.rows=5", "--config.rate=1e-3", "--config.tied", code=OWN)
    assert config["data"]["batch_size"] == 5 and config["optimizer"]["learning_rate"] == 1e-3
    assert config["model"]["tie_embedding"] is True
    assert "config.rows=five: invalid literal" in show("code_bytes", "--config.rows=five", code=OWN)


@pytest.mark.parametrize("module, argument, message", [
    ("paper", "--config.size=0.4b", "error: size='0.4b' is not one of"),
    ("paper", "--config.recipe=inductions", 'Did you mean "induction"'),
    ("paper", "--config.sise=1m", "error: --config has no field 'sise'. Did you mean \"size\""),
    ("paper", "--config.modell.d_model=64", 'Did you mean "model"'),
    ("paper", "--config.model.d_modell=64", 'Did you mean "d_model"'),
    ("paper", "--config.size", "error: Missing value for flag --config.size"),
    ("code_bytes", "--config.size=1m", "error: --config has no field 'size'."),
    ("finetune", "--config.num_heads=1", "error: config.source_run is empty: name the workdir"),
    ("finetune", "--config.source_rum=x", 'Did you mean "source_run"'),
    ("finetune", "--config.source_run=nowhere", "config.source_run='nowhere' has no config.json"),
])
def test_mistakes_are_told_with_the_nearest(module, argument, message):
    told = show(module, argument)
    assert isinstance(told, str) and message in told


@pytest.mark.parametrize("module, arguments, told, settings", [
    ("paper", [], ["--config.size: the model's shape", "--config.recipe:"], "--config.model.d_model=1024"),
    ("paper", ["--config.size=1m"], ["--config.size:"], "--config.model.d_model=128"),
    ("paper", ["--config.size=nothing"], ["--config.size:", "None yet: size='nothing'"], None),
    ("finetune", [], ["--config.source_run: workdir of the run", "checkpoints/<step>; may lie in a bucket.",
                      "None yet: config.source_run is empty"], None),
    ("stories", [], ["FairytaleQAData"], "--config.data.source='jsonl'"),
])
def test_help_shows_the_parameters_and_what_follows_from_them(module, arguments, told, settings):
    done = run([sys.executable, "-m", f"experiments.{module}", *arguments, "--help"])
    assert "Traceback" not in done.stderr and "--workdir" in done.stdout
    assert all(part in " ".join(done.stdout.split()) for part in told)
    assert settings in done.stdout if settings else "--config.model.norm_eps=" not in done.stdout


def test_a_parameter_without_a_default_is_the_authors_mistake():
    done = run([sys.executable, "-c", SHOW.format(module="code_bytes", code=(
        "code_bytes.get_config = lambda size: 0"))])
    assert "TypeError: get_config's parameter size needs a default" in done.stderr
