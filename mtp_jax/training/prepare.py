"""Everything that can be checked before a device computes, and what a run says of itself before it compiles."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys

import numpy as np
from absl import logging
from etils import epath

from mtp_jax.checkpoints import Checkpointer, check_source
from mtp_jax.config import Config, MixtureConfig, differences
from mtp_jax.data import Corpus, open_corpus
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.parallel.compile_cache import set_compile_cache
from mtp_jax.training import workdir as workdirs
from mtp_jax.training.explain import explain
from mtp_jax.training.loop import Run
from mtp_jax.training.program import build_program
from mtp_jax.training.progress import count
from mtp_jax.training.state import flatten_params

PROMPT_ROWS = 64  # rows of a source that are searched for the end of a prompt


def prepare(config: Config, workdir: str | epath.Path) -> Run:
    """Checks a run and puts its pieces together; computes nothing.

    Args:
      config: the run's.
      workdir: its folder; may be new, or hold the run already.

    Returns:
      The run, ready to train.

    Raises:
      ValueError: a field of the config, the data, the devices or the workdir does not fit; names it, its value and the
        remedy.
    """
    workdir = epath.Path(workdir).expanduser()
    config.validate()
    set_compile_cache(config.logging.compile_cache)
    corpus = open_corpus(config.data)
    corpus.check_steps(config.train.num_steps)
    config = resolve_vocabulary(config, corpus.tokenizer)
    check_prompt_end(config, corpus)
    program = build_program(config)
    workdirs.check_folder(workdir)
    has_checkpoint = bool(Checkpointer(workdir / workdirs.CHECKPOINTS, config.checkpoint).steps())
    if has_checkpoint:
        workdirs.check_identity(workdir, config, corpus.hash)
    elif config.init_from.path:
        check_source(config.init_from.path, program.spec.shapes, heads=config.init_from.heads,
                     head_kind=config.model.head_kind)
    elif config.objective.loop_objective == "gate":
        logging.warning("objective.loop_objective='gate' trains the exit gate alone, and without init_from.path that "
                        "of a random trunk: name the workdir of the run whose gate it is.")
    return Run(config, workdir, corpus, program)


def resolve_vocabulary(config: Config, tokenizer: Tokenizer) -> Config:
    """Returns the config with model.vocab_size set to the tokenizer's where it is None.

    Raises:
      ValueError: the vocabulary is smaller than the tokenizer's.
    """
    wanted = config.model.vocab_size
    if wanted is None:
        return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    if wanted < tokenizer.vocab_size:
        raise ValueError(f"model.vocab_size={wanted} is smaller than the {tokenizer.vocab_size} ids of "
                         f"data.tokenizer={config.data.tokenizer!r}: raise it, or leave it None.")
    return config


def check_prompt_end(config: Config, corpus: Corpus) -> None:
    """Checks that the token that ends prompts is there, for without it no target counts.

    Args:
      config: of the run, with the vocabulary size resolved.
      corpus: of the run.

    Raises:
      ValueError: it is no id, or in none of the first rows of a source.
    """
    token, size = config.objective.prompt_end, config.model.vocab_size or 0
    if token is None:
        return
    if token >= size:
        raise ValueError(f"objective.prompt_end={token} is no id of the vocabulary of {size}: no target would count.")
    for name, part in corpus.parts.items():
        rows = part.rows["train"]
        looked_at = min(len(rows), PROMPT_ROWS)
        if not any(np.any(rows[row]["tokens"] == token) for row in range(looked_at)):
            raise ValueError(f"objective.prompt_end={token} is in none of the first {looked_at} training rows of "
                             f"{name}: no target would count there. Give the id that the tokenizer has for what ends "
                             "its prompts, or leave it out.")


def announce(run: Run, default: Config) -> None:
    """Prints `describe` to stderr, on process 0, and the table of parameters where parallel.explain asks for it."""
    if run.is_first_process:
        print(describe(run, default, command_line()), file=sys.stderr, flush=True)
        if run.config.parallel.explain:
            print(explain(run.program), file=sys.stderr, flush=True)


def describe(run: Run, default: Config, command: str) -> str:
    """Returns what a run says before it compiles.

    Args:
      run: prepared.
      default: the experiment's own config, to show the difference from.
      command: what starts the run again.
    """
    config, program = run.config, run.program
    changed = {name: new for name, (_, new) in differences(default, config).items() if name != "model.vocab_size"}
    if "data.mixture" in changed:
        usual = dataclasses.asdict(MixtureConfig(""))
        changed["data.mixture"] = tuple({name: value for name, value in part.items() if value != usual[name]}
                                        for part in changed["data.mixture"])
    groups: dict[str, int] = {}
    for path, leaf in flatten_params(program.spec.shapes).items():
        group = path.split("/")[0]
        groups[group] = groups.get(group, 0) + int(np.prod(leaf.shape))
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.layout.mesh.shape.items() if size > 1) or "1 device"
    execution = program.execution
    stacks = "unrolled" if execution.unroll else "scanned"
    heads = (f"{config.model.num_heads} {config.model.head_kind} heads, {config.model.unembedding} unembedding, "
             f"reduction {config.objective.reduction}, weights {config.objective.schedule}")
    return "\n".join([
        f"workdir     {run.workdir}",
        "changed     " + (", ".join(f"{name}={value!r}" for name, value in changed.items()) or "nothing: the defaults"),
        "data        " + run.corpus.summary(config.train.num_steps).replace("\n", "\n" + " " * 12),
        f"model       {count(program.spec.num_params)} parameters ("
        + ", ".join(f"{name} {count(size)}" for name, size in groups.items()) + f"); {heads}",
        f"devices     {program.layout.mesh.size} x {program.layout.mesh.devices.flat[0].device_kind}, mesh {mesh}; "
        f"attention {execution.kernel}, remat {execution.remat}, layers {stacks}",
        f"a step      {count(config.data.batch_size * config.data.seq_len)} tokens, "
        f"{count(program.flops_per_token)}FLOP a token; {config.train.num_steps} steps in all",
        f"memory      about {program.estimated_bytes() / 2**20:,.0f} MiB a device, of which state "
        f"{program.state_bytes() / 2**20:,.0f} MiB",
        f"to resume   {command}",
    ])


def command_line() -> str:
    """Returns the command that started this process, or the launcher that did, as a person would type it."""
    if "MTP_JAX_COMMAND" in os.environ:  # launch/local.py sets it
        return os.environ["MTP_JAX_COMMAND"]
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = f"python -m {spec.name}" if spec is not None else f"python {sys.argv[0]}"
    return " ".join([program, *(shlex.quote(argument) for argument in sys.argv[1:]
                                if argument.split("=")[0].lstrip("-") != "dry_run")])

