"""Preparing a corpus on Apache Beam: on its local runner, on Dataflow, Flink or Spark.

What follows `--` on the command line goes to Beam, and decides where the shards are written:

    python -m mtp_jax.data.prepare --source=jsonl --path="gs://bucket/text/*.jsonl" --output=gs://bucket/prepared -- \
        --runner=DataflowRunner --project=PROJECT --region=us-central1 --temp_location=gs://bucket/tmp \
        --setup_file=./setup.py

The shards, and so the corpus, are those that `prepare.local` writes, whatever the runner. This machine makes the plan,
waits for the job, and joins the shards; if it is stopped, the same command goes on with the shards that are not done.

Beam needs older versions of some libraries than constraints.txt names: install it into an environment of its own by
`pip install -e '.[prepare]' -c constraints-prepare.txt`, for Dataflow with `apache-beam[gcp]` and `gcsfs`. Machines of
a cluster need mtp_jax too. From a checkout, --setup_file=./setup.py installs it on each of them when it starts, which
takes minutes; --sdk_container_image names an image that has it. Of its requirements, the machines need absl-py, etils,
array-record, tqdm and what reads the source and the tokenizer; neither jax nor flax nor grain.
"""

from __future__ import annotations

import collections
import logging
import pickle
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtp_jax.data.manifest import Manifest
from mtp_jax.data.prepare.folder import begin, finish, finished, tidy
from mtp_jax.data.prepare.local import alone
from mtp_jax.data.prepare.plan import Plan, Settings, Shard
from mtp_jax.data.prepare.shard import digests, read_info, write_shard

LOCAL_RUNNER = "FnApiRunner"  # in this process; "DirectRunner" first downloads another, which is written in Go
STEP = " [while running '"  # what Beam adds to the message of an error
Place = tuple[int, int, int]  # of a document: number of its piece, place in the piece, index of its shard


class PipelineFailed(RuntimeError):
    """The pipeline ended before all shards were written."""


def prepare(plan: Plan, output: Any, *, options: Sequence[str] = ()) -> Manifest:
    """Writes a prepared corpus, or goes on with one that was stopped; the result is that of `local.prepare`.

    Args:
      plan: of the corpus.
      output: folder to write, which all machines see: in a bucket, unless they share a file system.
      options: Beam's flags; without --runner, its local runner.

    Returns:
      The manifest; also of a folder that was finished before.

    Raises:
      ValueError: the source or a document of it cannot be used, the folder is of another corpus, Beam is not installed
        or does not like its flags.
      OSError: the folder cannot be written. What is done stays.
      PipelineFailed: the pipeline was cancelled, or failed for another reason. What is done stays.
    """
    logging.disable(logging.WARNING)  # importing Beam warns where it lacks the packages for Google's cloud
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    except ModuleNotFoundError as error:
        raise ValueError("flags after -- are for Apache Beam, which is not installed: in an environment of its own, "
                         "pip install -e '.[prepare]' -c constraints-prepare.txt") from error
    finally:
        logging.disable(logging.NOTSET)
    beam_options = PipelineOptions(list(options))
    standard = beam_options.view_as(StandardOptions)
    standard.runner = standard.runner or LOCAL_RUNNER
    if "dataflow" in standard.runner.lower():
        _check_reachable(plan, output)
    done = finished(plan, output)
    if done is not None:
        tidy(output)
        return done
    with alone(output):
        shards = begin(plan, output)
        if shards:
            _run(plan, shards, output, beam_options)
        return finish(plan, output)


def _run(plan: Plan, shards: Sequence[Shard], output: Any, options: Any) -> None:
    """Writes these shards.

    Raises:
      PipelineFailed: see `prepare`.
      Exception: what a document or the folder raised.
    """
    import apache_beam as beam

    pipeline, result = beam.Pipeline(options=options), None
    _build(pipeline, plan, shards, str(output))
    try:
        result = pipeline.run()
        state = result.wait_until_finish() or result.state
    except KeyboardInterrupt:
        if result is not None:
            result.cancel()  # a cluster would go on
        raise
    except Exception as error:
        raise _original(error) from error
    if state != "DONE":
        raise PipelineFailed(f"the pipeline ended as {state}. What is done stays: run the same command again to go on.")


def _build(pipeline: Any, plan: Plan, shards: Sequence[Shard], output: str) -> None:
    """Adds the steps to a pipeline: each of these shards is read, tokenized and written in one go."""
    import apache_beam as beam

    settings = plan.settings
    todo = pipeline | "Shards" >> beam.Create([(shard.index, _pack(shard)) for shard in shards])
    if not settings.config.drop_duplicates:
        todo |= "Spread" >> beam.Reshuffle()
        grouped = todo | "Alone" >> beam.MapTuple(lambda index, shard: (index, {"shard": [shard], "dropped": []}))
    else:
        dropped = (pipeline | "AllShards" >> beam.Create([_pack(shard) for shard in plan.shards])
                   | "SpreadAll" >> beam.Reshuffle()
                   | "Digests" >> beam.FlatMap(_digests, settings)
                   | "Same" >> beam.GroupByKey()
                   | "AllButTheFirst" >> beam.FlatMap(_all_but_the_first))
        grouped = {"shard": todo, "dropped": dropped} | "ByShard" >> beam.CoGroupByKey()
    grouped | "Write" >> beam.FlatMap(_write, settings, output)


def _pack(shard: Shard) -> bytes:
    """Returns a shard as bytes, small ones: Dataflow limits the size of a job's description."""
    return zlib.compress(pickle.dumps(shard))


def _unpack(packed: bytes) -> Shard:
    return pickle.loads(zlib.decompress(packed))


def _digests(packed: bytes, settings: Settings) -> Iterator[tuple[bytes, Place]]:
    """Yields (digest, where it is) of every document of a shard."""
    shard = _unpack(packed)
    for number, joined in digests(settings, shard).items():
        for place in range(len(joined) // 16):
            yield joined[16 * place:16 * place + 16], (number, place, shard.index)


def _all_but_the_first(same: tuple[bytes, Any]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields (index of the shard, (number of the piece, place)) of documents whose content was there before."""
    places = same[1]  # may be larger than memory, and can be gone through again
    first = min(places)
    for number, place, shard in places:
        if (number, place, shard) != first:
            yield shard, (number, place)


def _write(task: tuple[int, Mapping[str, Any]], settings: Settings, output: str) -> Iterator[int]:
    """Writes a shard, unless it is done: Beam may ask for it twice. Yields its index."""
    from apache_beam.metrics import Metrics

    index, parts = task
    dropped: dict[int, set[int]] = collections.defaultdict(set)
    for number, place in parts["dropped"]:
        dropped[number].add(place)
    for packed in parts["shard"]:  # one; none for a shard that was done before and has duplicates
        shard = _unpack(packed)
        info = read_info(settings, shard, output) or write_shard(
            settings, shard, {number: frozenset(places) for number, places in dropped.items()}, output)
        for split in info.splits.values():
            for name, count in (("documents", split.file.documents), ("tokens", split.file.tokens),
                                ("bytes", split.bytes)):
                Metrics.counter("prepare", name).inc(count)
        yield index


def _check_reachable(plan: Plan, output: Any) -> None:
    """Raises ValueError for a path of this machine, which Dataflow's machines do not see."""
    from etils import epath

    config = plan.settings.config
    paths = {"path": config.path, "validation_path": config.validation_path, "tokenizer": config.tokenizer}
    local = {name: value for name, value in paths.items()
             if value and "://" not in value and epath.Path(value).expanduser().exists()}
    if "://" not in str(output):
        local["output"] = str(output)
    for name, value in local.items():
        raise ValueError(f"--{name}={value} lies on this machine, and Dataflow's machines do not see it: copy it to a "
                         "bucket, and name it there (gs://...).")


def _original(error: Exception) -> Exception:
    """Returns the error of ours that Beam wrapped: as itself with a longer message, or in the text of a traceback."""
    text, found, _ = str(error).rpartition(STEP)
    if not found:
        return error
    if isinstance(error, ValueError):
        return ValueError(text)
    kind, _, message = re.split(r"^(?=\w*(?:Error|Exception): )", text, flags=re.MULTILINE)[-1].partition(": ")
    known = {"ValueError": ValueError, "OSError": OSError, "PermissionError": OSError}
    return known[kind](message) if kind in known else error


def quieten() -> None:
    """Shows of Beam's messages what a person at a terminal needs.

    That is, beside warnings, how a job on Dataflow goes and where to look at it; and no traceback of an error that is
    raised as well, and told once.
    """
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    dataflow = logging.getLogger("apache_beam.runners.dataflow")
    dataflow.setLevel(logging.INFO)
    dataflow.addHandler(handler)
    dataflow.propagate = False
