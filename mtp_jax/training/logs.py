"""What a run writes of its numbers: metrics.jsonl and TensorBoard events, cut back when a run resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

METRICS_FILE = "metrics.jsonl"
REMOTE_SECONDS = 60.0  # at most this often is a file in a bucket written anew, unless `flush` asks for it


@dataclasses.dataclass(frozen=True)
class Record:
    """The numbers of one step and split. Entries of a head that is inactive (weight 0) are None."""

    step: int  # optimizer steps done
    split: str  # "train" or "validation"
    loss: float  # the objective, over all heads
    head_loss: Sequence[float | None]  # [N] nats per token
    head_accuracy: Sequence[float | None]  # [N] share of targets that are the head's most likely token
    tokens_per_second: float | None = None  # of the whole run, over all devices
    tflops_per_device: float | None = None  # TFLOP/s of one device, as training/flops.py counts
    mfu: float | None = None  # share of the devices' peak; None: peak unknown
    learning_rate: float | None = None
    grad_norm: float | None = None  # before clipping
    head_weights: Sequence[float] | None = None  # [N] loss weights of the step
    head_agreement: Sequence[float | None] | None = None  # [N] share agreeing with head 1's own prediction
    expected_accepted_length: float | None = None  # tokens a self-speculative step would emit
    validation_bits_per_byte: Sequence[float | None] | None = None  # [N] where tokens are bytes
    sources: Mapping[str, Mapping[str, Sequence[float | None]]] | None = None  # of a mixture: {name: {field: [N]}}
    # Of a trunk that is run T times; head_loss and head_accuracy are then those after its last loop:
    task_loss: float | None = None  # heads' expected losses, weighted as in the objective: without the entropy
    entropy_term: float | None = None  # -beta times the entropy, what the objective adds to task_loss; nats
    entropy: float | None = None  # of the exit distribution, mean over positions, nats
    expected_head_loss: Sequence[float | None] | None = None  # [N] loss expected when tokens leave as the gate says
    exit_share: Sequence[float | None] | None = None  # [T] share of tokens that leave after each loop
    loops: Mapping[str, Mapping[str, Sequence[float | None]]] | None = None  # {"1" .. "T": {field: [N]}}


_OPTIONAL = ("tflops_per_device", "head_weights", "head_agreement", "expected_accepted_length",
             "validation_bits_per_byte", "sources", "task_loss", "entropy_term", "entropy", "expected_head_loss",
             "exit_share", "loops")


def to_json(record: Record) -> dict[str, Any]:
    """Returns the object of a line of metrics.jsonl; what is not finite becomes None, for JSON has no NaN."""
    values = {"step": int(record.step), "split": record.split}
    for field in dataclasses.fields(record)[2:]:
        value = getattr(record, field.name)
        if value is not None or field.name not in _OPTIONAL:
            values[field.name] = _finite(value)
    return values


def _finite(value: Any) -> Any:
    """Returns a float, or a list or mapping of them, with None for what is None or not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if value is None or isinstance(value, float):
        return value if value is not None and math.isfinite(value) else None
    if getattr(value, "ndim", 0) or isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return _finite(float(value))


def is_remote(path: epath.PathLike) -> bool:
    """Tells whether `path` lies in a bucket (gs://, s3://), where a file can be replaced but not appended to."""
    return "://" in os.fspath(path)


def cut_back(path: epath.PathLike, *, step: int) -> int:
    """Removes from a metrics.jsonl the lines after `step`, and lines that a kill or a full disk left unreadable.

    A run that starts from nothing (`step` 0) keeps no line.

    Args:
      path: the file; may be missing.
      step: the step that was restored.

    Returns:
      The number of lines removed.
    """
    path = epath.Path(path)
    if not path.exists():
        return 0
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines, 1) if step > 0 and _belongs(line, number, step, path)]
    if len(kept) < len(lines):
        _replace(path, "".join(kept))
    return len(lines) - len(kept)


def _belongs(line: str, number: int, step: int, path: epath.Path) -> bool:
    """Tells whether a line is whole and not after `step`; warns of a damaged one."""
    try:
        values = json.loads(line)
        whole = line.endswith("\n") and isinstance(values["step"], int)
    except (ValueError, TypeError, KeyError):  # TypeError: JSON, but not an object
        whole = False
    if not whole:
        logging.warning("%s: line %d was cut off while it was written; it is removed.", path, number)
        return False
    return values["step"] <= step


def _replace(path: epath.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    if is_remote(path):
        path.write_text(text)  # an object appears when its upload is complete
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def _told_of(path: epath.PathLike) -> Iterator[None]:
    """Gives an OSError of writing `path` the file's name and a remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}: the run's metrics cannot be written; free some space, "
                      "or choose another workdir", os.fspath(path)) from error


class RunLog:
    """Writes a run's records to metrics.jsonl and to TensorBoard. Only process 0 writes; elsewhere calls do nothing.

    On a local disk every record is appended by one write, so that a kill loses none that was written. A bucket cannot
    append: there the file is held in memory and written anew, at most once in `REMOTE_SECONDS`, and events go to a
    temporary folder and are copied. So call `flush` before a checkpoint commits, and write the records of step s
    before the checkpoint of step s: the lines up to a restored step are then always there.

    Example:
      with RunLog(workdir, step=restored_step) as log:
        log.write(Record(step=10, split="train", loss=1.5, head_loss=[1.5], head_accuracy=[0.4]))
    """

    def __init__(self, workdir: epath.PathLike, *, step: int, tensorboard: bool = True):
        """Cuts what the workdir holds back to `step` and opens it for writing.

        Args:
          workdir: folder of the run; made if missing.
          step: the step that was restored; 0 for a new run.
          tensorboard: write events.out.tfevents.* beside metrics.jsonl.
        """
        self._active = jax.process_index() == 0
        self._closed = False
        self._failed = False  # a write or a flush has raised
        self._events: _Events | None = None
        self._descriptor: int | None = None
        if not self._active:
            return
        self._workdir = epath.Path(workdir)
        self._remote = is_remote(self._workdir)
        self._path = self._workdir / METRICS_FILE
        self._workdir.mkdir(parents=True, exist_ok=True)
        removed = cut_back(self._path, step=step)
        if removed:
            logging.info("%s: %d lines after step %d removed.", self._path, removed, step)
        self._text = self._path.read_text() if self._remote and self._path.exists() else ""
        self._saved = time.monotonic()
        if not self._remote:
            with _told_of(self._path):
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if tensorboard:
            self._events = _Events(self._workdir, step=step)

    def write(self, record: Record) -> None:
        """Adds a record.

        Raises:
          OSError: the disk is full or the file cannot be written; names the file.
          ValueError: the log is closed.
        """
        if self._closed:
            raise ValueError(f"step {record.step}: the run's log is closed; write before `close`.")
        if not self._active:
            return
        values = to_json(record)
        line = json.dumps(values, allow_nan=False) + "\n"
        with self._noting_failure():
            if self._descriptor is not None:
                self._append(self._descriptor, line.encode())
            else:
                self._text += line
            if self._events is not None:
                self._events.write(values)
        if self._remote and time.monotonic() - self._saved > REMOTE_SECONDS:
            self.flush()

    def _append(self, descriptor: int, line: bytes) -> None:
        """Appends a line to a local file; a part that a full disk refused is taken back."""
        end = os.fstat(descriptor).st_size
        with _told_of(self._path):
            try:
                written = os.write(descriptor, line)
                while written < len(line):
                    written += os.write(descriptor, line[written:])
            except OSError:
                with contextlib.suppress(OSError):  # the first error is the one to tell; `cut_back` drops a torn line
                    os.ftruncate(descriptor, end)
                raise

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Remembers an OSError, so that `close` does not try again and tell another one in its place."""
        try:
            yield
        except OSError:
            self._failed = True
            raise

    def flush(self) -> None:
        """Brings every record written so far to the disk or the bucket.

        Raises:
          OSError: the disk is full or a file cannot be written; names the file.
        """
        if not self._active:
            return
        with self._noting_failure():
            with _told_of(self._path):
                if self._descriptor is not None:
                    os.fsync(self._descriptor)
                elif self._text:
                    _replace(self._path, self._text)
            if self._events is not None:
                self._events.flush()
        self._saved = time.monotonic()

    def close(self) -> None:
        """Flushes and closes; further records are refused. After a failed write or flush, only closes.

        Raises:
          OSError: the disk is full or a file cannot be written; names the file.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if not self._failed:
                self.flush()
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)
            if self._events is not None:
                with contextlib.suppress(OSError) if self._failed else contextlib.nullcontext():
                    self._events.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def scalars(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Returns the TensorBoard tags and values of a line, such as ("train/head_loss/1", 1.5); None is left out."""
    split, found = values["split"], []
    named = {f"{part}/{name}": value for part, fields in values.get("sources", {}).items()
             for name, value in fields.items()}
    named |= {f"loop_{loop}/{name}": value for loop, fields in values.get("loops", {}).items()
              for name, value in fields.items()}
    for name, value in {**values, **named}.items():
        if isinstance(value, list):
            found += [(f"{split}/{name}/{head}", v) for head, v in enumerate(value, 1) if v is not None]
        elif isinstance(value, float):
            found.append((f"{split}/{name}", value))
    return found


class _Events:
    """A TensorBoard event file, written in the caller's thread.

    tensorboardX's SummaryWriter hands events to a thread: its flush does not wait for them, and when a full disk ends
    the thread, the next records block for ever. So only its record format is used.
    """

    def __init__(self, workdir: epath.Path, *, step: int):
        from tensorboardX import record_writer  # costs 0.3 s, and is optional by config
        from tensorboardX.proto import event_pb2

        self._workdir = workdir
        self._temporary = tempfile.TemporaryDirectory(prefix="events_") if is_remote(workdir) else None
        folder = self._temporary.name if self._temporary else os.fspath(workdir)
        # The process number keeps apart two sessions that start within a second, which share the rest of the name.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{step}"
        self._path = os.path.join(folder, name)
        with _told_of(self._path):
            self._file = record_writer.RecordWriter(self._path)
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # This is SummaryWriter's purge_step: older events from here on are hidden.
        self._add(event_pb2.Event(step=step + 1 if step else 0, wall_time=time.time(), session_log=start))

    def _add(self, event: Any) -> None:
        """Adds an event; a full buffer goes to the disk."""
        with _told_of(self._path):
            self._file.write(event.SerializeToString())

    def write(self, values: Mapping[str, Any]) -> None:
        """Adds the scalars of a line of metrics.jsonl."""
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        for tag, value in scalars(values):
            self._add(event_pb2.Event(step=values["step"], wall_time=time.time(), summary=scalar(tag, value)))

    def flush(self) -> None:
        """Writes what is buffered; for a bucket, copies the file there."""
        with _told_of(self._path):
            self._file.flush()
        if self._temporary is not None:
            target = self._workdir / os.path.basename(self._path)
            with _told_of(target):
                epath.Path(self._path).copy(target, overwrite=True)

    def close(self) -> None:
        """Closes the file, also where what is buffered cannot be written any more."""
        try:
            with _told_of(self._path):
                self._file.close()
        finally:
            if self._temporary is not None:
                self._temporary.cleanup()
