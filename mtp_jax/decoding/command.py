"""What `python -m mtp_jax.generate` does: reads, calibrates where asked, generates, and shows."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
from absl import logging
from etils import epath

from mtp_jax.config import GenerationConfig
from mtp_jax.data.tokenizer import Tokenizer
from mtp_jax.decoding import calibration, prompts, terminal
from mtp_jax.decoding.generate import DecodingModel, Generation, generate
from mtp_jax.decoding.load import load_model
from mtp_jax.decoding.model import check_branches, check_heads
from mtp_jax.decoding.sampling import make_sampling
from mtp_jax.decoding.tree import Tree
from mtp_jax.parallel.compile_cache import set_compile_cache

INTERRUPTED = 130  # exit status of Ctrl-C


def run(config: GenerationConfig) -> int:
    """Runs the command.

    Args:
      config: its flags.

    Returns:
      The exit status.

    Raises:
      ValueError: a flag, a file or the workdir does not fit; names the remedy.
      CheckpointError: there is no checkpoint, or each is damaged.
    """
    try:
        with _out_of_memory():
            _run(config)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the text has seen enough; Python's own flush at the end would tell it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(config: GenerationConfig) -> None:
    """Does the work of `run`."""
    config.validate()
    make_sampling(**_sampling(config))  # before what takes seconds
    texts = prompts.read_prompts(config)
    if config.stream and len(texts) > 1:
        raise ValueError(f"--stream shows one text as it grows, and there are {len(texts)} prompts: give one, or leave "
                         "out --stream.")
    if config.stats and not epath.Path(config.stats).expanduser().parent.is_dir():
        raise ValueError(f"--stats={config.stats} is in a folder that does not exist: make it, or name another file.")
    if config.stats and epath.Path(config.stats).expanduser().is_dir():
        raise ValueError(f"--stats={config.stats} is a folder: name a file in it.")
    if config.temperature == 0 and not config.typical and (config.top_k or config.top_p < 1 or config.min_p):
        logging.warning("--top_k, --top_p and --min_p change nothing at --temperature=0, which takes the most likely "
                        "token: raise the temperature to draw.")
    set_compile_cache("auto")
    everything = config.calibrate or config.heads == "auto"
    model = load_model(config.workdir, heads=None if everything or not config.heads else int(config.heads),
                       window=config.window, mesh=config.mesh or None, cache_dtype=config.cache_dtype or None,
                       tokenizer=config.tokenizer or None, step=config.step, exit_threshold=config.exit_threshold,
                       loops=config.loops)
    if config.heads not in ("", "auto"):  # with --calibrate all are loaded, whatever --heads is
        check_heads(int(config.heads), model.heads)
    tokenizer = cast(Tokenizer, model.tokenizer)  # load_model has one or raises
    ids = prompts.prompt_ids(tokenizer, texts)
    stop = prompts.stop_ids(tokenizer, config.stop, model.config.vocab_size or 0)
    if config.calibrate:
        _calibrate(config, model)
    if not ids:
        return
    tree = _tree(config, model, ids)
    shown = _Shown(config, tokenizer, ids, tree.heads)
    result = generate(model, ids, max_new_tokens=config.max_new_tokens, tree=tree, seed=config.seed, stop=stop,
                      on_tokens=shown.take if shown.streams else None, **_sampling(config))
    shown.finish(result)
    if config.stats:
        epath.Path(config.stats).expanduser().write_text(json.dumps(result.stats()) + "\n")
    print(summary(result), file=sys.stderr)


def _sampling(config: GenerationConfig) -> dict[str, Any]:
    """Returns the settings of how tokens are chosen."""
    return {name: getattr(config, name) for name in
            ("temperature", "top_k", "top_p", "min_p", "typical", "typical_epsilon", "typical_delta")}


def _calibrate(config: GenerationConfig, model: DecodingModel) -> None:
    """Measures the heads on --calibrate's text, keeps the figures in the workdir and says them."""
    from mtp_jax.decoding import calibrate

    found = calibrate.calibrate(model, calibrate.read_text(config.calibrate),
                                name=os.path.basename(config.calibrate))
    path = calibration.save(found, str(model.source))
    print(f"Calibrated on {found.positions:,} positions of continuations of {config.calibrate}:\n"
          "  head   right at once   among its first 5", file=sys.stderr)
    for head, shares in enumerate(found.accuracy, 2):
        print(f"  {head:4d}   {shares[0]:13.1%}   {sum(shares[:5]):16.1%}", file=sys.stderr)
    print(f"Wrote {path}, for --tree=NODES and --heads=auto.", file=sys.stderr)


def _tree(config: GenerationConfig, model: DecodingModel, ids: Sequence[Sequence[int]]) -> Tree:
    """Returns what each forward drafts."""
    if config.heads == "auto":
        from mtp_jax.decoding import auto

        choice = auto.choose_for(model, ids, max_new_tokens=config.max_new_tokens, workdir=model.source)
        print(*auto.report(choice, temperature=config.temperature), sep="\n", file=sys.stderr)
        return choice.tree
    k = int(config.heads) if config.heads else model.heads
    if not config.tree:
        return Tree.chain(k)
    if k == 1:
        raise ValueError(f"--tree={config.tree} needs drafts, and the model has one head: leave out --tree.")
    check_branches(model.config, f"--tree={config.tree}")
    return Tree.prune(calibration.load(str(model.source), model).accuracy[:k - 1], config.tree)


class _Shown:
    """The text on stdout: as it grows for one prompt on a terminal, else when it is done."""

    def __init__(self, config: GenerationConfig, tokenizer: Tokenizer, ids: Sequence[Sequence[int]], heads: int):
        self._out, self._ids, self._tokenizer = sys.stdout, ids, tokenizer
        if hasattr(self._out, "reconfigure"):
            self._out.reconfigure(errors="replace")  # a terminal that is not UTF-8 gets question marks
        self._coloured = config.show_drafts
        self._guarded = self._out.isatty() or self._coloured
        self.streams = len(ids) == 1 and (self._out.isatty() if config.stream is None else config.stream)
        self._stream = terminal.TextStream(tokenizer, ids[0])
        self._taken = 0
        if self._coloured:
            print(terminal.legend(heads), file=sys.stderr)
        self._heads_up(config)

    def _heads_up(self, config: GenerationConfig) -> None:
        """Shows on a terminal what is continued, dimly."""
        if self.streams and self._out.isatty() and sys.stderr.isatty() and config.prompt:
            print(f"\x1b[2m{terminal.harmless(config.prompt[0])}\x1b[0m", end="", file=sys.stderr, flush=True)

    def take(self, row: int, tokens: Any, heads: Any) -> None:
        """Prints the new tokens of the one row."""
        del row
        self._taken += len(tokens)
        self._write(self._stream.push(tokens, heads))

    def finish(self, result: Generation) -> None:
        """Prints what was not printed yet."""
        if self.streams:
            self.take(0, result.tokens[0][self._taken:], result.drafted_by[0][self._taken:])
            self._write(self._stream.finish())
            self._out.write("\n")
        else:
            for row, prompt in enumerate(self._ids):
                if row:
                    self._out.write("\n" if self._out.isatty() else "\f\n")
                if len(self._ids) > 1:
                    self._out.flush()
                    start = self._tokenizer.decode(prompt).strip().splitlines()
                    print(f"--- {row + 1} of {len(self._ids)}, after {start[-1][-60:] if start else ''!r}",
                          file=sys.stderr, flush=True)
                self._write(terminal.pieces(self._tokenizer, prompt, result.tokens[row], result.drafted_by[row]))
                self._out.write("\n")
        self._out.flush()

    def _write(self, found: Any) -> None:
        for text, head in found:
            text = terminal.harmless(text) if self._guarded else text
            self._out.write(terminal.colour(text, head) if self._coloured else text)
        self._out.flush()


def summary(result: Generation) -> str:
    """Returns one line on how the generation went."""
    stats = result.stats()
    accepted = ", ".join(f"{share:.0%}" for share in stats["acceptance"])
    ends = ", ".join(f"{name} {result.finished.count(name)}" for name in dict.fromkeys(result.finished))
    return (f"{stats['tokens']} tokens in {stats['forwards']} forwards ({stats['tokens_per_forward']:.2f} a forward), "
            f"{stats['seconds']:.2f} s: {stats['tokens_per_second']:,.0f} tokens/s"
            + (f"; {stats['loops_per_token']:.2f} loops a token" if "loops_per_token" in stats else "")
            + (f"; accepted at draft 1, 2, ...: {accepted}" if accepted else "") + f"; ended by {ends}")


@contextlib.contextmanager
def _out_of_memory() -> Iterator[None]:
    """Says what to do where a device has too little memory."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(f"A device ran out of memory ({str(error).splitlines()[0]}): give fewer prompts, a smaller "
                         "--window, --cache_dtype=bfloat16, or a --mesh of more devices.") from error
