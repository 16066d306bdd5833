"""The command: what it refuses, and that a destination is whole or not there."""

import os
import subprocess
import sys
import time

import pytest

from mtp_jax.convert import command, formats, hf
from tests.convert.models import assert_same, make_arrays, make_config, make_workdir, options, read_all


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("runs") / "small", make_config())


def test_the_destination_has_to_be_new_or_empty(source, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--dst=.*full is not empty: .*--overwrite"):
        command.convert(options(source, full, "hf"))
    with pytest.raises(ValueError, match="is a file"):
        command.convert(options(source, full / "mine.txt", "hf"))
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    command.convert(options(source, full, "hf", overwrite=True))
    assert not (full / "mine.txt").exists() and (full / "model.safetensors").exists()
    empty = tmp_path / "a" / "b"
    empty.mkdir(parents=True)
    command.convert(options(source, empty, "hf"))
    assert (empty / "model.safetensors").exists()


@pytest.mark.parametrize("before", [False, True])
def test_a_failure_leaves_what_was_there(source, tmp_path, monkeypatch, before):
    place = tmp_path / "out"
    if before:
        place.mkdir()
        (place / "model.safetensors").write_text("the one before")

    def stream(model, entries, dtype):
        for number, pair in enumerate(original(model, entries, dtype)):
            if number == 5:
                raise OSError(28, "No space left on device", str(place))
            yield pair

    original = hf.stream
    monkeypatch.setattr(hf, "stream", stream)
    with pytest.raises(OSError, match="No space left"):
        command.convert(options(source, place, "hf", overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * before
    assert not before or (place / "model.safetensors").read_text() == "the one before"


def test_a_killed_command_leaves_nothing_that_looks_whole(source, tmp_path):
    """kill -9 in the middle of writing: what is left has another name, and the command works again."""
    code = ("import os, signal, sys\nfrom mtp_jax.convert import convert, hf\noriginal = hf.stream\n"
            "def stream(*arguments):\n    for number, pair in enumerate(original(*arguments)):\n"
            "        if number == 9: os.kill(os.getpid(), signal.SIGKILL)\n        yield pair\n"
            f"hf.stream = stream\nconvert(src={str(source)!r}, dst={str(tmp_path / 'out')!r})")
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -9
    assert [path.name[:12] for path in tmp_path.iterdir()] == ["out.partial-"]
    command.convert(options(source, tmp_path / "out", "hf"))
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("fields, message", [
    ({"dst_format": "hff"}, r"--dst_format='hff' .*hf"),
    ({"src_format": "gguf"}, "--src_format=gguf can be written and not read: choose one of workdir, hf"),
    ({"src": "nowhere"}, "--src=nowhere does not exist"),
    ({"src": ""}, "--src is missing"),
    ({"dst": ""}, "--dst is missing"),
    ({"dtype": "int8"}, "--dtype='int8'"),
    ({"dtype": "q8_0"}, "only gguf holds it"),
    ({"heads": 4}, "--heads=4, but .* has 3"),
    ({"heads": 0}, "--heads=0 must be at least 1"),
    ({"max_shard_megabytes": 0}, "--max_shard_megabytes=0"),
    ({"dst": "gs://bucket/x"}, "--dst lies in a bucket"),
    ({"src": "gs://bucket/x", "src_format": "hf"}, "--src lies in a bucket"),
    ({"step": 3}, "step=3, but .* has checkpoints of the steps 7"),
])
def test_settings_that_do_not_fit(source, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        command.convert(options(**{"src": source, "dst": tmp_path / "out", "dst_format": "hf", **fields}))
    assert list(tmp_path.iterdir()) == []


def test_the_destination_may_not_hold_the_source(source):
    with pytest.raises(ValueError, match="holds --src"):
        command.convert(options(source, source.parent, "hf", overwrite=True))
    assert (source / "config.json").exists()


@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format_says_what_it_holds_and_reads(name):
    module = formats.get_format("--dst_format", name, reads=False)
    assert module.HEAD_KINDS and callable(module.write)
    assert hasattr(module, "read") == (name in formats.READABLE)


def test_a_head_kind_that_a_format_cannot_hold(tmp_path):
    source = make_workdir(tmp_path / "linear", make_config(head_kind="linear"))
    with pytest.raises(ValueError, match=r"--dst_format=meta cannot hold heads of the kind 'linear' \(it holds parallel\)"
                                         r": choose workdir, hf, .*stablehlo"):
        command.convert(options(source, tmp_path / "out", "meta"))


def test_workdir_to_workdir_is_the_same_model(source, tmp_path):
    lines = command.convert(options(source, tmp_path / "copy", "workdir"))
    assert any("mtp_jax.generate --workdir=" in line for line in lines)
    model = formats.get_format("--src_format", "workdir", reads=True).read(
        tmp_path / "copy", options(tmp_path / "copy", "x", "hf"))
    assert_same(read_all(model), make_arrays(make_config()))
    assert model.facts["step"] == 7


def test_the_command_line(source, tmp_path):
    def run(*arguments):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        return subprocess.run([sys.executable, "-m", "mtp_jax.convert", *arguments], capture_output=True, text=True,
                              timeout=120, env=environment)

    start = time.monotonic()
    done = run("--help")
    assert done.returncode == 1 and "--dst_format" in done.stdout and time.monotonic() - start < 5
    done = run(f"--src={source}", f"--dst={tmp_path / 'out'}", "--dst_format=meata")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: --dst_format='meata'") and done.stderr.count("\n") == 1
    done = run(f"--src={source}", f"--dst={tmp_path / 'out'}")
    assert done.returncode == 0 and "Wrote" in done.stderr and str(tmp_path / "out") in done.stdout, done.stderr
