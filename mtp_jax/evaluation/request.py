"""What a task is asked for, and the model that it may load when it needs one."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etils import epath

from mtp_jax.config import Config, EvaluationConfig
from mtp_jax.terminal import bar_size

if TYPE_CHECKING:
    from mtp_jax.decoding import DecodingModel


class Request:
    """What a task is asked for.

    Attributes:
      config: all flags.
      least_completions: of any problem, where a file brings them.
    """

    def __init__(self, config: EvaluationConfig, options: Mapping[str, Any], *, model: DecodingModel | None = None):
        """Loads nothing yet.

        Args:
          config: the flags, validated.
          options: the task's own settings.
          model: a model that is loaded already; None: that of the workdir.
        """
        self.config = config
        self.options = dict(options)
        self.least_completions = 1
        self._given = model

    def option(self, name: str) -> Any:
        """Returns a setting of the task's own."""
        return self.options[name]

    @property
    def data(self) -> epath.Path | None:
        """The file or folder that --data names; None where it was left out.

        Raises:
          ValueError: it does not exist.
        """
        if not self.config.data:
            return None
        from mtp_jax.data.sources.paths import nearest_sibling

        path = epath.Path(self.config.data).expanduser()
        if not path.exists():
            raise ValueError(f"--data={self.config.data} does not exist.{nearest_sibling(path)}")
        return path

    @functools.cached_property
    def model(self) -> DecodingModel:
        """The model of the workdir, with the heads that are used.

        Raises:
          ValueError, CheckpointError: see `load_model`.
        """
        if self._given is not None:
            return self._given
        from mtp_jax.decoding.load import load_model
        from mtp_jax.parallel import host_memory
        from mtp_jax.parallel.compile_cache import set_compile_cache

        config = self.config
        if not config.workdir:
            raise ValueError("--workdir is missing: this task needs a model.")
        if host_memory.will_run_on_cpu():
            host_memory.keep_freed_memory()
        set_compile_cache("auto")
        return load_model(config.workdir, heads=config.heads, window=config.window, mesh=config.mesh or None,
                          tokenizer=config.tokenizer or None, step=config.step,
                          exit_threshold=config.exit_threshold, loops=config.loops)

    def run_config(self) -> Config:
        """Returns the settings of the run in the workdir.

        Raises:
          ValueError, CheckpointError: there is no run.
        """
        from mtp_jax.decoding.load import read_config

        if not self.config.workdir:
            raise ValueError("--workdir is missing: this task reads the run's own settings.")
        return read_config(self.config.workdir)

    def take(self, problems: list[Any]) -> list[Any]:
        """Returns the problems that --limit leaves."""
        return problems[:self.config.limit] if self.config.limit else problems

    def progress(self, total: int, what: str, done: int = 0) -> Any:
        """Returns a tqdm bar on stderr."""
        from tqdm import tqdm

        return tqdm(total=total, initial=done, desc=what, file=sys.stderr, **bar_size(sys.stderr))

    def settings(self) -> dict[str, Any]:
        """Returns what decided the numbers, for the result: model, data and the task's own settings."""
        import mtp_jax

        config, found = self.config, dict[str, Any](mtp_jax=mtp_jax.__version__)
        if "model" in self.__dict__:
            model = self.model
            found |= {"workdir": config.workdir, "step": model.step, "heads": model.heads, "window": model.window,
                      "batch_size": config.batch_size}
            if model.config.trunk_kind == "looped":
                found |= {"loops": model.config.loops, "exit_threshold": model.exit_threshold}
        if config.data:
            found |= {"data": config.data, "data_sha256": digest(self.data)}
        for name, value in self.options.items():
            if name.endswith("_file") and value:  # decides the prompts as the data do
                found[f"{name}_sha256"] = digest(epath.Path(value).expanduser())
        return {**found, "limit": config.limit, "seed": config.seed, **self.options}


def digest(path: epath.Path | None) -> str | None:
    """Returns the sha256 of a file; None for a folder."""
    if path is None or path.is_dir():
        return None
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def output_path(config: EvaluationConfig) -> epath.Path:
    """Returns the file that the result goes to."""
    if config.output:
        return epath.Path(config.output).expanduser()
    if config.workdir:
        return epath.Path(config.workdir).expanduser() / "eval" / f"{config.task}.json"
    source = epath.Path(config.completions).expanduser()
    return source.with_name(f"{os.path.splitext(source.name)[0]}.{config.task}.json")
