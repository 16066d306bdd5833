"""The command: what it refuses, and that a destination is whole or not there."""

import dataclasses
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mtp_jax import commands
from mtp_jax.config import ConvertConfig
from mtp_jax.convert import command, formats, table
from mtp_jax.convert.__main__ import main
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
    with pytest.raises(ValueError, match="cannot be made in"):
        command.convert(options(source, full / "mine.txt" / "out", "hf"))
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

    original = table.stream
    monkeypatch.setattr(table, "stream", stream)
    with pytest.raises(OSError, match="No space left"):
        command.convert(options(source, place, "hf", overwrite=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * before
    assert not before or (place / "model.safetensors").read_text() == "the one before"


def test_a_killed_command_leaves_nothing_that_looks_whole(source, tmp_path):
    """kill -9 in the middle of writing: what is left has another name, and the command works again."""
    code = ("import os, signal, sys\nfrom mtp_jax.convert import convert, table\noriginal = table.stream\n"
            "def stream(*arguments):\n    for number, pair in enumerate(original(*arguments)):\n"
            "        if number == 9: os.kill(os.getpid(), signal.SIGKILL)\n        yield pair\n"
            f"table.stream = stream\nconvert(src={str(source)!r}, dst={str(tmp_path / 'out')!r})")
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
    ({"src": "memory://bucket/x"}, r"--src=memory://bucket/x cannot be read \(.*memory"),
    ({"src": "gs://bucket/x", "src_format": "hf"}, "--src lies in a bucket"),
    ({"heads": 2, "dst_format": "workdir"}, "--heads=2 beside --dst_format=workdir"),
    ({"step": 3, "src_format": "hf"}, "--step=3 beside --src_format=hf: only a workdir"),
    ({"head_kind": "causal"}, "--head_kind=causal beside --src_format=workdir"),
    ({"step": 3}, "step=3, but .* has checkpoints of the steps 7"),
])
def test_settings_that_do_not_fit(source, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        command.convert(options(**{"src": source, "dst": tmp_path / "out", "dst_format": "hf", **fields}))
    assert list(tmp_path.iterdir()) == []


def test_the_destination_may_not_hold_the_source_nor_be_a_part_of_it(source, tmp_path):
    for place in (source, source.parent):
        with pytest.raises(ValueError, match="holds --src"):
            command.convert(options(source, place, "hf", overwrite=True))
    (tmp_path / "link").symlink_to(source)
    for place in (source / "checkpoints", tmp_path / "link" / "checkpoints"):
        with pytest.raises(ValueError, match="is a part of --src=.* and not empty"):
            command.convert(options(source, place, "hf", overwrite=True))
    assert (source / "config.json").exists() and (source / "checkpoints" / "7").exists()


@pytest.mark.parametrize("target", ["full", "empty", "none"])
def test_a_link_is_followed_and_stays(source, tmp_path, target):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(target)
    command.convert(options(source, tmp_path / "link", "meta", overwrite=target == "full"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / target / "params.json").exists() and not (tmp_path / target / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"empty", "full", "link", target})


def test_what_came_into_the_destination_meanwhile_stays(source, tmp_path, monkeypatch):
    def stream(*arguments):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine.txt").write_text("mine")
        yield from original(*arguments)

    original = table.stream
    monkeypatch.setattr(table, "stream", stream)
    with pytest.raises(ValueError, match="is not empty"):
        command.convert(options(source, tmp_path / "out", "hf"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("name", formats.FORMATS)
def test_every_format_says_what_it_holds_and_reads(name):
    module = formats.get_format("--dst_format", name, reads=False)
    assert module.HEAD_KINDS and callable(module.write)
    assert hasattr(module, "read") == (name in formats.READABLE)


def test_a_head_kind_that_a_format_cannot_hold(tmp_path):
    source = make_workdir(tmp_path / "linear", make_config(head_kind="linear"))
    with pytest.raises(ValueError, match=r"--dst_format=meta cannot hold heads of the kind 'linear' \(it holds "
                                         r"parallel\): choose workdir, hf, .*stablehlo"):
        command.convert(options(source, tmp_path / "out", "meta"))


def test_workdir_to_workdir_is_the_same_model(source, tmp_path):
    lines = command.convert(options(source, tmp_path / "copy", "workdir"))
    assert any("mtp_jax.generate --workdir=" in line for line in lines)
    model = formats.get_format("--src_format", "workdir", reads=True).read(
        tmp_path / "copy", options(tmp_path / "copy", "x", "hf"))
    assert_same(read_all(model), make_arrays(make_config()))
    assert model.facts["step"] == 7


@pytest.mark.parametrize("raised, status, message", [
    (KeyboardInterrupt, 130, "error: stopped by Ctrl-C. --dst is as it was"), (MemoryError, 1, "error: memory ran out"),
    (OSError(28, "No space left on device"), 1, "error: the disk is full: --dst=.*out could not be written")])
def test_ends_that_are_no_ones_mistake(source, tmp_path, monkeypatch, capsys, raised, status, message):
    def stream(*arguments):
        yield next(original(*arguments))
        raise raised

    original = table.stream
    monkeypatch.setattr(table, "stream", stream)
    values = {field.name: field.default for field in dataclasses.fields(ConvertConfig)}
    flags = {name: SimpleNamespace(value=value) for name, value in {
        **values, "src": str(source), "dst": str(tmp_path / "out")}.items()}
    monkeypatch.setattr(commands, "define_flags", lambda settings: flags)
    monkeypatch.setattr(commands, "run", lambda run, *names: sys.exit(run()))
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == status and out == "" and err.count("\n") == 1 and re.match(message, err)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(source, tmp_path):
    def run(*arguments):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        return subprocess.run([sys.executable, "-m", "mtp_jax.convert", *arguments], capture_output=True, text=True,
                              timeout=120, env=environment)

    done = run("--help")
    assert done.returncode == 1 and "--dst_format" in done.stdout
    done = run(f"--src={source}", f"--dst={tmp_path / 'out'}", "--dst_format=meata")
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: --dst_format='meata'") and done.stderr.count("\n") == 1
    done = run(f"--src={source}", f"--dst={tmp_path / 'out'}")
    assert done.returncode == 0 and "Wrote" in done.stderr and str(tmp_path / "out") in done.stdout, done.stderr
