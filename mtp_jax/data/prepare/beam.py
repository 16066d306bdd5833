"""Preparing a corpus on Apache Beam: on its local runner, on Dataflow, Flink or Spark.

What follows `--` on the command line goes to Beam, and decides where the shards are written:

    python -m mtp_jax.data.prepare --source=jsonl --path="gs://bucket/text/*.jsonl" --output=gs://bucket/prepared -- \
        --runner=DataflowRunner --project=PROJECT --region=us-central1 --temp_location=gs://bucket/tmp \
        --setup_file=./setup.py

The shards, and so the corpus, are those that `prepare.local` writes, whatever the runner. This machine makes the plan,
waits for the job, and joins the shards; if it is stopped, the same command goes on with the shards that are not done.

Beam needs older versions of some libraries than constraints.txt names: install it into an environment of its own by
`pip install -e '.[prepare]' -c constraints-prepare.txt`, for Dataflow with `apache-beam[gcp]` and `gcsfs`. Machines of
a cluster need mtp_jax too. From a checkout, --setup_file=./setup.py installs it with all that it requires on each of
them when it starts; --sdk_container_image names an image that has it, which starts sooner. In such an image,
`pip install --no-deps` of mtp_jax, with absl-py, etils[epath], array-record, numpy, and what reads the source and the
tokenizer, is enough: neither jax nor flax nor grain. A shard is up to 128 MB of the source, and a machine holds about
five times its text: --number_of_worker_harness_threads=1 lets each process of Dataflow hold one at a time.
"""

from __future__ import annotations

import collections
import logging
import pickle
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mtp_jax.config import nearest
from mtp_jax.data.manifest import Manifest
from mtp_jax.data.prepare.folder import begin, finish, finished, tidy
from mtp_jax.data.prepare.local import alone
from mtp_jax.data.prepare.plan import Plan, Settings, Shard
from mtp_jax.data.prepare.shard import WORK, digests, read_info, replacing, write_shard

LOCAL_RUNNER = "FnApiRunner"  # in this process; "DirectRunner" first downloads another, which is written in Go
SHARDS = "shards.pickle"  # in WORK: the plan's shards, for the machines to read from
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
        if not any(option.partition("=")[0] == "--runner" for option in options):
            _check_flags(options)
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
            _save_shards(plan, output)
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
    todo = pipeline | "Shards" >> beam.Create([(shard.index, "todo") for shard in shards])
    if not settings.config.drop_duplicates:
        tasks = todo | "Spread" >> beam.Reshuffle() | "Alone" >> beam.Map(lambda item: (item[0], ()))
    else:
        dropped = (pipeline | "AllShards" >> beam.Create([shard.index for shard in plan.shards])
                   | "SpreadAll" >> beam.Reshuffle()
                   | "Digests" >> beam.FlatMap(_digests, settings, output)
                   | "Same" >> beam.GroupByKey()
                   | "AllButTheFirst" >> beam.FlatMap(_all_but_the_first))
        tasks = ({"todo": todo, "dropped": dropped} | "ByShard" >> beam.CoGroupByKey()
                 | "NotDone" >> beam.Filter(lambda item: item[1]["todo"])
                 | "Dropped" >> beam.Map(lambda item: (item[0], item[1]["dropped"])))
    tasks | "Write" >> beam.Map(_write, settings, output)


def _save_shards(plan: Plan, output: Any) -> None:
    """Writes the shards into the folder: Dataflow limits a job's description to 10 MB, which a long list would exceed.

    The file holds bounds [shards + 1] as int64, and then every shard, pickled.
    """
    from etils import epath

    packed = [zlib.compress(pickle.dumps(shard)) for shard in plan.shards]
    sizes = [8 * (len(packed) + 1), *map(len, packed)]
    with replacing(epath.Path(output) / WORK / SHARDS) as path:
        path.write_bytes(np.cumsum(sizes, dtype="<i8").tobytes() + b"".join(packed))


def _read_shard(index: int, output: str) -> Shard:
    """Returns a shard that `_save_shards` wrote."""
    from etils import epath

    with (epath.Path(output) / WORK / SHARDS).open("rb") as file:
        file.seek(8 * index)
        start, end = np.frombuffer(file.read(16), "<i8").tolist()
        file.seek(start)
        return pickle.loads(zlib.decompress(file.read(end - start)))


def _digests(index: int, settings: Settings, output: str) -> Iterator[tuple[bytes, Place]]:
    """Yields (digest, where it is) of every document of a shard."""
    for number, joined in digests(settings, _read_shard(index, output)).items():
        for place in range(len(joined) // 16):
            yield joined[16 * place:16 * place + 16], (number, place, index)


def _all_but_the_first(same: tuple[bytes, Any]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields (index of the shard, (number of the piece, place)) of documents whose content was there before."""
    places = same[1]  # may be larger than memory, and can be gone through again
    first = min(places)
    for number, place, shard in places:
        if (number, place, shard) != first:
            yield shard, (number, place)


def _write(task: tuple[int, Iterable[tuple[int, int]]], settings: Settings, output: str) -> int:
    """Writes a shard without these (number of a piece, place in it), unless it is done; returns its index.

    Beam may ask for a shard twice.
    """
    from apache_beam.metrics import Metrics

    index, places = task
    shard = _read_shard(index, output)
    info = read_info(settings, shard, output)
    if info is None:
        dropped: dict[int, set[int]] = collections.defaultdict(set)
        for number, place in places:
            dropped[number].add(place)
        info = write_shard(settings, shard, {number: frozenset(found) for number, found in dropped.items()}, output)
    for split in info.splits.values():
        for name, count in (("documents", split.file.documents), ("tokens", split.file.tokens), ("bytes", split.bytes)):
            Metrics.counter("prepare", name).inc(count)
    return index


def _check_flags(options: Sequence[str]) -> None:
    """Raises ValueError for a flag that Beam does not know: with a misspelt --runner all would run on this machine.

    With a runner named Beam warns of them, for those of a job server for Flink or Spark are not known here.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    parsers: list[Any] = []  # Beam's only one, which it shows to those that would add to it
    known = PipelineOptions(list(options)).get_all_options(add_extra_args_fn=parsers.append)
    for option in parsers[0].parse_known_args(list(options))[1]:
        name = option.partition("=")[0]
        raise ValueError(f"Apache Beam has no flag {name!r}.{nearest(name.lstrip('-'), list(known))}")


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
    system = re.fullmatch(r"\[Errno (\d+)\] ([^:]*)(?:: '(.*)')?", message)
    if system:
        return OSError(int(system[1]), *system.groups()[1:])  # of the kind that the number says, such as a full disk
    known = {"ValueError": ValueError, "OSError": OSError}
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
