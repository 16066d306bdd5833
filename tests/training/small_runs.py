"""A small corpus, and runs that take a second a dozen steps."""

import os
import pathlib
import random
import subprocess
import sys

from experiments import code_bytes
from mtp_jax import config as configs

ROOT = pathlib.Path(__file__).parent.parent.parent
WORDS = "def return self value if else for in range import class print None True False x y z".split()


def write_corpus(folder):
    """Fills a folder with 12 files of made-up code."""
    draw = random.Random(0)
    for number in range(12):
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(draw.randint(5, 40))]
        (folder / f"file_{number}.py").write_text("\n".join(lines))
    return folder


def small(corpus, **changes):
    """Returns a small config; changes are section__field=value."""
    values = {
        "model": dict(num_heads=2, num_layers=3, d_model=16, num_attention_heads=2, d_ff_multiple=8),
        "data": dict(source="files", path=str(corpus), batch_size=8, seq_len=16, validation_batches=2),
        "optimizer": dict(learning_rate=1e-2, warmup_steps=2),
        "train": dict(num_steps=8, checkpoint_every=4, validate_every=4),
        "logging": dict(log_every=1, progress="lines"),
    }
    for name, value in changes.items():
        section, field = name.split("__")
        values.setdefault(section, {})[field] = value
    return configs.from_dict(values)


def mixed(corpus, **changes):
    """Returns a small config on a mixture of two sources, both of them the corpus, split in two ways."""
    parts = (dict(name="most", path=str(corpus), weight=0.75),
             dict(name="rest", path=str(corpus), weight=0.25, validation_fraction=0.4))
    return small("", data__source="stdlib", data__mixture=parts, **changes)


def command(corpus, workdir, **changes):
    """Returns the command line of a small run."""
    start = configs.flatten(configs.from_config_dict(code_bytes.get_config()))
    arguments = [f"--config.{name}={value}" for name, value in configs.flatten(small(corpus, **changes)).items()
                 if value != start[name]]
    return [sys.executable, "-m", "experiments.code_bytes", f"--workdir={workdir}", *arguments]


def run(arguments, timeout=240, **kwargs):
    """Runs a command to its end on one device; returns what subprocess.run returns."""
    return subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout,
                          **kwargs)


def environment():
    """The tests' environment with one device: what a newcomer's laptop has."""
    return {**os.environ, "XLA_FLAGS": ""}
