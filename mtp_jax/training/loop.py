"""The training loop: dispatches a step, reads the metrics of the one before, validates, saves, stops."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

import mtp_jax
from mtp_jax.checkpoints import Checkpointer, initialise_from, load_params
from mtp_jax.config import Config, to_dict
from mtp_jax.data import Corpus
from mtp_jax.training import flops, signals
from mtp_jax.training import workdir as workdirs
from mtp_jax.training.logs import Record, RunLog
from mtp_jax.training.program import Program
from mtp_jax.training.progress import Progress
from mtp_jax.training.records import add, train_record, validation_record
from mtp_jax.training.state import TrainState
from mtp_jax.training.step import StepMetrics


class NonFiniteLoss(Exception):
    """The loss or the gradient is no longer a number; what was saved before stays good."""


class Meter:
    """Tokens per second of training alone: compiling, validation and saves are left out."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds = 0.0
        self._tokens = 0

    def tick(self, tokens: int) -> None:
        """Notes that a step of `tokens` tokens is done; the first one after a pause only starts the clock."""
        now = time.perf_counter()
        if self._last is not None:
            self._seconds += now - self._last
            self._tokens += tokens
        self._last = now

    def pause(self) -> None:
        """Notes that what comes next is not training."""
        self._last = None

    def take(self) -> float | None:
        """Returns the tokens per second since the last call, or None if no step was timed, and starts anew."""
        rate = self._tokens / self._seconds if self._seconds else None
        self._seconds, self._tokens = 0.0, 0
        return rate


@dataclasses.dataclass
class Run:
    """A prepared run: every check is done, nothing is computed yet.

    Attributes:
      config: resolved.
      workdir: its folder.
      corpus: opened.
      program: what will be compiled.
    """

    config: Config
    workdir: epath.Path
    corpus: Corpus
    program: Program

    @property
    def is_first_process(self) -> bool:
        """Whether this process speaks and writes for all."""
        return jax.process_index() == 0

    @property
    def is_only_process(self) -> bool:
        """Whether the run has no other process."""
        return jax.process_count() == 1

    def initial_state(self, checkpointer: Checkpointer) -> tuple[TrainState, int, int]:
        """Returns the state to start from, its step and the next global row.

        Order: (1) the newest undamaged checkpoint of the workdir; (2) init_from; (3) random parameters.
        """
        restored = checkpointer.restore(self.program.state)
        if restored is not None:
            logging.info("Going on from step %d of %s.", restored.step, self.workdir)
            return restored.state, restored.step, int(restored.extra["data"]["next_row"])
        state = self.program.init(jax.random.key(self.config.train.seed))
        if self.config.init_from.path:
            source = load_params(self.config.init_from.path, like=state.params, verify=self.config.checkpoint.verify)
            params = initialise_from(source.params, state.params, heads=self.config.init_from.heads,
                                     head_kind=self.config.model.head_kind)
            state = dataclasses.replace(state, params=params)
            logging.info("Starting from the parameters of %s.", source.path)
        return state, 0, 0

    def train(self) -> int:
        """Trains to the last step or until told to stop.

        Returns:
          The exit status, see `mtp_jax.training.signals`.

        Raises:
          NonFiniteLoss: names the step and the head.
          CheckpointError: a checkpoint could not be written or read.
        """
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(signals.StopSignals())
            checkpointer = stack.enter_context(
                Checkpointer(self.workdir / workdirs.CHECKPOINTS, self.config.checkpoint))
            state, step, next_row = self.initial_state(checkpointer)
            if self.is_first_process:
                workdirs.write_config(self.workdir, self.config, corpus_hash=self.corpus.hash,
                                      tokenizer_hash=self.corpus.tokenizer.hash)
            log = stack.enter_context(RunLog(self.workdir, step=step, tensorboard=self.config.logging.tensorboard))
            progress = stack.enter_context(Progress(mode=self.config.logging.progress, first_step=step,
                                                    num_steps=self.config.train.num_steps))
            batches = stack.enter_context(
                self.corpus.train_batches(self.program.rows_of_process, next_row))
            return _Loop(self, checkpointer, log, progress, batches, stop).run(state, step)

    def dry_run(self) -> int:
        """Trains two steps and validates on one batch, and writes nothing."""
        checkpointer = Checkpointer(self.workdir / workdirs.CHECKPOINTS, self.config.checkpoint)
        state, _, _ = self.initial_state(checkpointer)
        with self.corpus.train_batches(self.program.rows_of_process) as batches:
            for step in (1, 2):
                start = time.perf_counter()
                state, metrics = self.program.train_step(state, self.program.put(next(batches)))
                metrics = jax.device_get(metrics)
                record = train_record(step, metrics, self.program)
                check_finite(record, metrics)
                print(f"step {step}: loss {record.loss:.4f}, gradient norm {record.grad_norm:.4f}, "
                      f"{time.perf_counter() - start:.2f} s{' with compiling' if step == 1 else ''}")
        validation = next(iter(self.corpus.validation_batches(self.program.rows_of_process).values()))
        sums = self.program.validation_step(state.params, np.int32(2), self.program.put(validation[0]))
        record = validation_record(2, self.program, {"": jax.device_get(sums)})
        print(f"validation on one batch: loss {record.loss:.4f}\nDry run: nothing was written to {self.workdir}.")
        return signals.DONE


class _Loop:
    """The loop's collaborators, and the step whose metrics are still to be read."""

    def __init__(self, run: Run, checkpointer: Checkpointer, log: RunLog, progress: Progress, batches: Any,
                 stop: signals.StopSignals):
        self.run_, self.config, self.program = run, run.config, run.program
        self.checkpointer, self.log, self.progress = checkpointer, log, progress
        self.batches, self.stop = batches, stop
        self.validation = run.corpus.validation_batches(run.program.rows_of_process)
        self.meter = Meter()
        self.pending: tuple[int, StepMetrics] | None = None
        self.tokens = self.config.data.batch_size * self.config.data.seq_len

    def run(self, state: TrainState, step: int) -> int:
        """Runs from `step` steps done to the end; returns the exit status."""
        last = self.config.train.num_steps
        if step >= last:
            logging.info("All %d steps are done; raise train.num_steps to train on.", last)
            return signals.DONE
        with _Profiler(self.config, self.run_.workdir, first_step=step + 1) as profiler:
            return self.run_steps(state, step, profiler)

    def run_steps(self, state: TrainState, step: int, profiler: _Profiler) -> int:
        """The loop itself; see `run`."""
        config, last = self.config.train, self.config.train.num_steps
        status = None
        while step < last and status is None:
            profiler.before(step + 1)
            batch = self.program.put(next(self.batches))
            with jax.transfer_guard("disallow"):
                state, metrics = self.program.train_step(state, batch)
            step += 1
            self.read_pending()  # of the step before, while the devices work on this one
            self.pending = (step, metrics)
            profiler.after(step, metrics)
            status = self.stop.status(step)
            validates = step == last or step % config.validate_every == 0
            saves = step == last or step % config.checkpoint_every == 0 or status is not None
            if validates or saves:
                self.read_pending()  # a state is saved only after its loss and gradient were seen to be finite
            if validates:
                self.validate(state, step)
            if saves:
                self.save(state, step)
            if validates or saves:
                self.meter.pause()
        self.checkpointer.wait()
        if step < last:
            logging.info("Stopped and saved at step %d of %d; the same command goes on from there.", step, last)
            return signals.UNFINISHED if status is None else status
        return signals.DONE

    def read_pending(self) -> None:
        """Reads the metrics of the last dispatched step, if not read yet, and logs them."""
        if self.pending is None:
            return
        (step, on_devices), self.pending = self.pending, None
        metrics = jax.device_get(on_devices)
        self.meter.tick(self.tokens)
        record = train_record(step, metrics, self.program)
        check_finite(record, metrics)
        self.progress.advance(step)
        if step == 1 or step % self.config.logging.log_every == 0 or step == self.config.train.num_steps:
            rate = self.meter.take()
            tflops = rate and rate * self.program.flops_per_token / self.program.layout.mesh.size / 1e12
            mfu = tflops and flops.mfu(tflops, device_kind=self.program.layout.mesh.devices.flat[0].device_kind,
                                       configured_peak=self.config.logging.peak_tflops)
            record = dataclasses.replace(record, tokens_per_second=rate, mfu=mfu, tflops_per_device=tflops)
            self.log.write(record)
            self.progress.show(record)

    def validate(self, state: TrainState, step: int) -> None:
        """Runs over the held-out batches of each source and logs the means."""
        parts = {name: functools.reduce(add, (
            self.program.validation_step(state.params, np.int32(step), self.program.put(batch)) for batch in batches))
            for name, batches in self.validation.items()}
        parts = {name: jax.device_get(sums) for name, sums in parts.items()}  # JAX would sort the names
        record = validation_record(step, self.program, parts)
        self.log.write(record)
        self.progress.show(record)

    def save(self, state: TrainState, step: int) -> None:
        """Starts to save the state and the place in the data; records up to the step are on disk before."""
        self.log.flush()
        self.checkpointer.save(step, state, {
            "data": self.batches.state(), "config": to_dict(self.config), "mesh": self.config.parallel.mesh,
            "process_count": jax.process_count(), "version": mtp_jax.__version__,
            "corpus_hash": self.run_.corpus.hash, "tokenizer_hash": self.run_.corpus.tokenizer.hash})


class _Profiler:
    """Traces the steps that the config names, for TensorBoard's profile tab."""

    def __init__(self, config: Config, workdir: epath.Path, *, first_step: int):
        self._first, self._last = config.logging.profile_start, (config.logging.profile_start
                                                                 + config.logging.profile_steps - 1)
        self._folder, self._on = workdir / "profile", False
        if self._first and not first_step <= self._first <= config.train.num_steps:
            logging.warning("logging.profile_start=%d is not among the steps %d to %d of this start: no profile is "
                            "written.", self._first, first_step, config.train.num_steps)

    def __enter__(self) -> _Profiler:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def before(self, step: int) -> None:
        """Starts the trace before its first step."""
        if self._first and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def after(self, step: int, metrics: StepMetrics) -> None:
        """Ends the trace after its last step has run."""
        if self._on and step == self._last:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Ends a trace that still runs."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
            logging.info("Profile of steps %d to %d: tensorboard --logdir=%s", self._first, self._last, self._folder)


def check_finite(record: Record, metrics: StepMetrics) -> None:
    """Raises NonFiniteLoss, naming the head and the step, unless loss and gradient are finite."""
    sums = np.asarray(metrics.sums.loss_N if metrics.loops is None else np.sum(metrics.loops.loss_NxT, axis=1))
    wrong = [k + 1 for k in range(len(sums)) if not math.isfinite(sums[k])]
    if not wrong and math.isfinite(record.loss) and math.isfinite(record.grad_norm or 0.0):
        return
    what = (f"the loss of head {', '.join(map(str, wrong))} is {', '.join(str(sums[k - 1]) for k in wrong)}" if wrong
            else f"the gradient norm is {record.grad_norm}" if math.isfinite(record.loss)
            else f"the loss is {record.loss}")
    raise NonFiniteLoss(f"Step {record.step}: {what}. Nothing was saved since the last checkpoint, which stays good. "
                        "Lower optimizer.learning_rate or optimizer.clip_norm, or lengthen optimizer.warmup_steps, "
                        "and run the same command in a new workdir or with init_from.path.")
