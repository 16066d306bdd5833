"""Apache Beam writes the prepared corpus that the processes of this machine write. `make test-prepare` runs these."""

import dataclasses
import errno
import json
import logging
import pathlib
import re
import subprocess
import sys

import pytest

from mtp_jax.config import DataConfig
from mtp_jax.data.prepare import beam, begin, digests, find_duplicates, local, make_plan, write_shard
from mtp_jax.data.prepare.shard import WORK
from mtp_jax.data.reading import SPLITS

ROOT = pathlib.Path(__file__).parent.parent.parent
STORIES = ROOT.parent / "shared" / "data" / "childrens_stories"
PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")

on_beam = pytest.mark.beam


@pytest.fixture
def stories(tmp_path):
    """Returns a folder of three JSONL files of fairy tales, some of them twice in a file or in two files."""
    if not STORIES.exists():
        pytest.skip("the fairy tales are not here")
    folder = tmp_path / "stories"
    folder.mkdir()
    val, test = ((STORIES / f"{name}.jsonl").read_bytes().splitlines(keepends=True) for name in ("val", "test"))
    (folder / "a.jsonl").write_bytes(b"".join(val))
    (folder / "b.jsonl").write_bytes(b"".join([*test, *val[:5], *test[:2]]))
    (folder / "c.jsonl").write_bytes(b"".join([*val[10:], *test[3:9]]))
    return folder


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """Returns the path of a tokenizer.json with a vocabulary of 500."""
    import tokenizers

    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([path.read_text() for path in sorted((ROOT / "mtp_jax/config").glob("*.py"))],
                                  vocab_size=500, special_tokens=["<s>", "</s>", "<pad>"])
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture
def config(stories):
    return DataConfig(source="jsonl", path=str(stories), validation_fraction=0.2, seed=1, drop_duplicates=True)


def plan_of(config):
    """Returns a plan of three shards, one a file."""
    plan = make_plan(config, min_shard_bytes=200_000)
    assert len(plan.shards) >= 3
    return plan


def records(folder):
    """Returns {file: its records} of all shards of a prepared corpus."""
    from array_record.python import array_record_module

    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.array_record")):
        reader = array_record_module.ArrayRecordReader(str(path))
        found[path.name] = reader.read(0, reader.num_records()) if reader.num_records() else []
    return found


def others(folder):
    """Returns {file: content} of all but the shards."""
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file() and path.suffix != ".array_record"}


def assert_same(folder, expected):
    """Fails unless two prepared corpora are equal: record for record, and byte for byte what is no record."""
    assert records(folder).keys() == records(expected).keys()
    for name, of_file in records(expected).items():
        assert records(folder)[name] == of_file, name
    assert others(folder) == others(expected)


SETTINGS = {
    "duplicates": {},
    "all documents": {"drop_duplicates": False},
    "filters": {"min_bytes": 4_000, "max_bytes": 20_000},
    "duplicates of what is held out": {"validation_path": "a.jsonl"},
    "BPE": {"tokenizer": "bpe"},
}


@on_beam
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_beam_writes_what_the_local_path_writes(settings, config, stories, bpe, tmp_path):
    settings = dict(settings)
    if "validation_path" in settings:
        settings["validation_path"] = str(stories / settings["validation_path"])
    if "tokenizer" in settings:
        settings["tokenizer"] = bpe
    plan = plan_of(dataclasses.replace(config, **settings))
    expected = local.prepare(plan, str(tmp_path / "local"), processes=1)
    found = beam.prepare(plan, str(tmp_path / "beam"))
    assert_same(tmp_path / "beam", tmp_path / "local")
    assert found == expected and all(found.splits[split].documents for split in SPLITS)
    assert expected.skipped.get("duplicate", 0) > 5 or not plan.settings.config.drop_duplicates
    assert len(records(tmp_path / "beam")) > 1


@on_beam
def test_worker_processes_write_the_same(config, tmp_path):
    plan = plan_of(config)
    local.prepare(plan, str(tmp_path / "local"), processes=1)
    beam.prepare(plan, str(tmp_path / "beam"), options=PROCESSES)
    assert_same(tmp_path / "beam", tmp_path / "local")


@on_beam
@pytest.mark.parametrize("line, options", [(b'{"text": "no end\n', ()), (b'{"text": "\xff"}\n', PROCESSES),
                                           (b'{"txet": "a"}\n', ())], ids=["no JSON", "no UTF-8", "no field"])
def test_a_bad_document_is_told_as_on_the_local_path(line, options, config, bpe, stories, tmp_path):
    with (stories / "b.jsonl").open("ab") as file:
        file.write(line)
    plan = plan_of(dataclasses.replace(config, tokenizer=bpe))
    messages = []
    for run in (lambda: local.prepare(plan, str(tmp_path / "local"), processes=1),
                lambda: beam.prepare(plan, str(tmp_path / "beam"), options=options)):
        with pytest.raises(ValueError) as caught:
            run()
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "b.jsonl" in messages[1]
    assert not (tmp_path / "beam" / "manifest.json").exists()


@on_beam
def test_from_a_bucket_into_a_bucket(config, stories, bucket, tmp_path):
    local.prepare(plan_of(config), str(tmp_path / "local"), processes=1)
    for path in stories.iterdir():
        bucket.pipe(f"gs://mine/stories/{path.name}", path.read_bytes())
    plan = plan_of(dataclasses.replace(config, path="gs://mine/stories"))
    beam.prepare(plan, "gs://mine/prepared")
    names = {path.name for path in (tmp_path / "local").iterdir()}
    assert {name.rsplit("/", 1)[1] for name in bucket.find("gs://mine/prepared")} == names
    for name in names - {"manifest.json"}:  # which holds the path
        assert bucket.cat(f"gs://mine/prepared/{name}") == (tmp_path / "local" / name).read_bytes(), name


@on_beam
def test_a_job_that_was_stopped_goes_on(config, tmp_path, monkeypatch):
    plan = plan_of(config)
    local.prepare(plan, str(tmp_path / "local"), processes=1)
    output = str(tmp_path / "beam")
    last = plan.shards[-1].index

    def fail(settings, shard, *rest):
        if shard.index == last:
            raise OSError(errno.ENOSPC, "No space left on device", "shard")
        return write_shard(settings, shard, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(beam, "write_shard", fail)
        with pytest.raises(OSError) as caught:
            beam.prepare(plan, output)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "shard")
    assert (tmp_path / "beam" / WORK).exists() and not (tmp_path / "beam" / "manifest.json").exists()
    done = {shard.index for shard in plan.shards} - {shard.index for shard in begin(plan, output)}

    def only_what_is_left(settings, shard, *rest):
        assert shard.index not in done
        return write_shard(settings, shard, *rest)

    monkeypatch.setattr(beam, "write_shard", only_what_is_left)
    beam.prepare(plan, output)
    assert_same(tmp_path / "beam", tmp_path / "local")
    monkeypatch.setattr(beam, "write_shard", None)  # a finished one is left alone
    assert beam.prepare(plan, output).documents


@on_beam
def test_a_shard_that_beam_asks_for_twice_is_written_once(config, tmp_path):
    plan = plan_of(config)
    output = str(tmp_path / "beam")
    (shard, *_) = begin(plan, output)
    beam._save_shards(plan, output)
    assert beam._write((shard.index, []), plan.settings, output) == shard.index
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "beam").rglob("*")}
    assert beam._write((shard.index, []), plan.settings, output) == shard.index
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "beam").rglob("*")} == before


@on_beam
@pytest.mark.parametrize("options", [["--runer=DataflowRunner"], ["--project=p", "--runer", "DataflowRunner"]])
def test_a_misspelt_runner_does_not_run_on_this_machine(options, config, tmp_path):
    with pytest.raises(ValueError, match="no flag '--runer'. Did you mean \"runner\""):
        beam.prepare(plan_of(config), str(tmp_path / "beam"), options=options)
    assert not (tmp_path / "beam").exists()


@on_beam
def test_counters_are_those_of_the_manifest(config, tmp_path):
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    plan = plan_of(config)
    manifest = local.prepare(plan, str(tmp_path / "local"), processes=1)
    pipeline = apache_beam.Pipeline(options=PipelineOptions([f"--runner={beam.LOCAL_RUNNER}"]))
    shards = begin(plan, str(tmp_path / "beam"))
    beam._save_shards(plan, str(tmp_path / "beam"))
    beam._build(pipeline, plan, shards, str(tmp_path / "beam"))
    result = pipeline.run()
    result.wait_until_finish()
    counters = {found.key.metric.name: found.committed for found in result.metrics().query()["counters"]
                if found.key.metric.namespace == "prepare"}
    assert counters == {"documents": manifest.documents, "tokens": manifest.tokens, "bytes": manifest.bytes}


@on_beam
def test_dataflow_needs_paths_that_its_machines_see(config, tmp_path):
    plan = plan_of(config)
    with pytest.raises(ValueError, match=re.escape(f"--path={config.path} lies on this machine")):
        beam.prepare(plan, "gs://bucket/prepared", options=["--runner=DataflowRunner"])


def command(*arguments, code=None):
    """Runs the command in a process of its own."""
    first = ["-c", code] if code else ["-m", "mtp_jax.data.prepare"]
    return subprocess.run([sys.executable, *first, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          timeout=300)


@on_beam
def test_the_command(config, stories, tmp_path):
    given = ["--source=jsonl", f"--path={stories}", "--drop_duplicates", "--validation_fraction=0.2"]
    by_beam = command(*given, f"--output={tmp_path / 'beam'}", "--", "--runner=FnApiRunner")
    assert by_beam.returncode == 0, by_beam.stderr
    assert "tokens" in by_beam.stdout and len(by_beam.stderr.splitlines()) == 1  # nothing of Beam's own
    by_this_machine = command(*given, f"--output={tmp_path / 'local'}", "--processes=1")
    assert by_this_machine.returncode == 0, by_this_machine.stderr
    assert_same(tmp_path / "beam", tmp_path / "local")


@on_beam
def test_the_command_tells_errors_plainly(stories, tmp_path):
    (stories / "d.jsonl").write_text('{"text": 3}\n')
    given = ["--source=jsonl", f"--path={stories}", f"--output={tmp_path / 'beam'}"]
    failed = command(*given, "--")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: ") and "d.jsonl" in failed.stderr
    both = command(*given, "--processes=2", "--")
    assert both.returncode == 1 and "give one" in both.stderr


@on_beam
def test_machines_of_a_cluster_need_neither_jax_nor_flax_nor_grain(config, tmp_path):
    code = "\n".join([
        "import sys",
        "sys.modules.update(dict.fromkeys(('jax', 'flax', 'optax', 'orbax', 'grain', 'ml_collections', 'matplotlib')))",
        "from mtp_jax.config import DataConfig",
        "from mtp_jax.data.prepare import beam, make_plan",
        "beam.prepare(make_plan(DataConfig(source='jsonl', path=sys.argv[1], validation_fraction=0.2)), sys.argv[2])"])
    done = command(config.path, tmp_path / "beam", code=code)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "beam" / "manifest.json").read_text())["documents"] > 50


def test_without_beam_the_error_says_how_to_install_it(monkeypatch, write_folder, text_files, tmp_path):
    plan = make_plan(DataConfig(source="files", path=write_folder(text_files)))
    for name in [name for name in sys.modules if name.split(".")[0] == "apache_beam"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match="-c constraints-prepare.txt"):
        beam.prepare(plan, str(tmp_path / "beam"))
    assert not (tmp_path / "beam").exists() and logging.root.manager.disable == logging.NOTSET


def test_duplicates_are_those_of_the_local_path(write_folder, text_files, tmp_path):
    texts = list(text_files.values())
    plan = make_plan(DataConfig(source="files", drop_duplicates=True, path=write_folder(
        text_files | {f"again/{i}.txt": texts[-1 - i % 3] for i in range(7)})), min_shard_bytes=500)
    assert len(plan.shards) > 2
    beam._save_shards(plan, str(tmp_path / "beam"))
    of_pieces, by_digest = {}, {}
    for shard in plan.shards:
        of_pieces |= digests(plan.settings, shard)
        assert beam._read_shard(shard.index, str(tmp_path / "beam")) == shard
        for digest, place in beam._digests(shard.index, plan.settings, str(tmp_path / "beam")):
            by_digest.setdefault(digest, []).append(place)
    found = {}
    for digest, places in by_digest.items():
        for shard, (number, place) in beam._all_but_the_first((digest, places)):
            assert number in {piece.number for piece in plan.shards[shard].pieces}
            found.setdefault(number, set()).add(place)
    assert found == find_duplicates(of_pieces) and len(found) == 7


@pytest.mark.parametrize("text, expected", [
    ("a: b\nc [while running 'Write-ptransform-3']", "a: b\nc"),
    ("Traceback:\nValueError: x\n\nDuring\nTraceback:\nValueError: a: b\nc: d [while running 'Write']\n\nmore",
     "a: b\nc: d"),
    ("OSError: [Errno 28] No space left on device [while running 'Write']", "[Errno 28] No space left on device"),
])
def test_the_message_of_ours_in_an_error_of_beam(text, expected):
    kind = ValueError if text.startswith("a") else RuntimeError
    found = beam._original(kind(text))
    assert str(found) == expected and isinstance(found, (ValueError, OSError))


def test_an_error_that_is_none_of_ours_stays_whole():
    for error in (RuntimeError("KeyError: 'x' [while running 'Write']"), RuntimeError("no job"), TypeError("a: b")):
        assert beam._original(error) is error


def test_only_what_beam_holds_back_differs_between_the_constraints():
    def pins(name):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        return {package: sorted(line for line in lines if line.startswith(f"{package}=="))
                for package in (line.split("==")[0] for line in lines)}

    ours, of_beam = pins("constraints.txt"), pins("constraints-prepare.txt")
    differ = {name for name in ours.keys() & of_beam.keys() if ours[name] != of_beam[name]}
    assert differ == {"numpy", "pillow", "protobuf", "pyarrow", "python-dateutil"}
