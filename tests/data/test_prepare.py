"""The plan of a prepared corpus, its shards and its end, in this process."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import pickle

import numpy as np
import pytest

from mtp_jax.config import DataConfig, MixtureConfig
from mtp_jax.data import Piece, open_corpus, register_source
from mtp_jax.data.prepare import begin, digests, find_duplicates, finish, make_plan, write_shard
from mtp_jax.data.prepare import local as local_module
from mtp_jax.data.prepare import shard as shard_module
from mtp_jax.data.prepare.local import prepare
from mtp_jax.data.prepare.plan import MIN_SHARD_BYTES
from mtp_jax.data.prepare.progress import Progress

SMALL = {"min_shard_bytes": 1000, "max_shard_bytes": 1000}
SIZES: dict[str, int] = {}  # what the source "sizes" lists


@register_source("sizes")
def sizes(config):
    return [Piece(name, size, list) for name, size in SIZES.items()]


@pytest.fixture
def plan(config):
    """A plan of several shards over the twelve small files."""
    plan = make_plan(config, **SMALL)
    assert len(plan.shards) > 2
    return plan


def write(plan, output, dropped=None):
    for shard in begin(plan, output):
        write_shard(plan.settings, shard, dropped or {}, output)
    return finish(plan, output)


def contents(folder):
    """Returns {relative path: sha256} of all files of a folder, hidden ones too."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in pathlib.Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("megabytes, files, shards", [
    (1, 100, 1), (40, 400, 10), (400, 4000, 64), (20_000, 4000, 156), (400, 1, 1), (0, 3, 1)])
def test_shards_follow_the_size_of_the_corpus(monkeypatch, megabytes, files, shards):
    monkeypatch.setattr(f"{__name__}.SIZES", {f"f{i}": megabytes * 10**6 // files for i in range(files)})
    plan = make_plan(DataConfig(source="sizes", path="x"))
    assert abs(len(plan.shards) - shards) <= shards // 50
    assert sorted(p.piece.name for shard in plan.shards for p in shard.pieces) == sorted(SIZES)
    if len(plan.shards) > 1:
        of_shards = [shard.size for shard in plan.shards]
        assert MIN_SHARD_BYTES * 0.9 <= min(of_shards) and max(of_shards) <= 1.2 * min(of_shards) + 10**7


def test_no_shard_is_empty_where_a_piece_is_larger_than_several(monkeypatch):
    monkeypatch.setattr(f"{__name__}.SIZES", {"large": 10**9, **{f"f{i}": 10**6 for i in range(50)}})
    plan = make_plan(DataConfig(source="sizes", path="x"))
    assert all(shard.pieces for shard in plan.shards) and len(plan.shards) >= 2
    assert [shard.index for shard in plan.shards] == list(range(len(plan.shards)))


def test_the_plan_hangs_on_what_decides_the_output(config, plan, write_folder):
    assert make_plan(config, **SMALL) == plan and make_plan(config, **SMALL).hash == plan.hash
    assert pickle.loads(pickle.dumps(plan)) == plan
    for change in ({"seed": 4}, {"validation_fraction": 0.3}, {"max_bytes": 300}, {"extensions": (".txt",)}):
        assert make_plan(dataclasses.replace(config, **change), **SMALL).hash != plan.hash
    for change in ({"batch_size": 8}, {"seq_len": 64}, {"num_workers": 2}):
        assert make_plan(dataclasses.replace(config, **change), **SMALL).hash == plan.hash
    write_folder({"part1/file7.txt": "of another size"})
    assert make_plan(config, **SMALL).hash != plan.hash


def test_what_cannot_be_planned_is_refused(config):
    with pytest.raises(ValueError, match="prepare each source into a folder of its own"):
        make_plan(DataConfig(mixture=(MixtureConfig(name="a"),)))
    with pytest.raises(ValueError, match="validation_fraction=1.5 must lie between 0 and 1"):
        make_plan(dataclasses.replace(config, validation_fraction=1.5))


def test_the_order_of_writing_changes_nothing(plan, tmp_path):
    write(plan, tmp_path / "a")
    begin(plan, tmp_path / "b")
    for shard in reversed(plan.shards):
        write_shard(plan.settings, shard, {}, tmp_path / "b")
        write_shard(plan.settings, shard, {}, tmp_path / "b")  # a second time, as Beam may
    finish(plan, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_documents_beyond_four_thousand_million_tokens(plan, tmp_path):
    """Their lengths are made up: the index counts them rightly."""
    output = tmp_path / "out"
    begin(plan, output)
    for shard in plan.shards:
        write_shard(plan.settings, shard, {}, output)
    path = sorted((output / "unfinished").glob("train-*.lengths"))[0]
    lengths = np.fromfile(path, "<i8")
    lengths[0] += 2**33
    lengths.tofile(path)
    split = finish(plan, output).splits["train"]
    assert split.tokens == sum(shard.tokens for shard in split.shards) + 2**33
    assert np.fromfile(output / split.index, "<i8")[split.documents] == split.tokens


def test_documents_go_through_as_they_are(plan, text_files, tmp_path):
    manifest = write(plan, tmp_path / "out")
    assert manifest.documents == 11 and manifest.skipped == {"empty": 1}
    assert manifest.bytes == sum(map(len, text_files.values())) and manifest.tokens == manifest.bytes + 2 * 11
    assert manifest.splits["train"].groups + manifest.splits["validation"].groups == 11
    corpus = open_corpus(DataConfig(source="prepared", path=str(tmp_path / "out"), seq_len=8, batch_size=1))
    found = []
    for rows in corpus.parts["prepared"].rows.values():
        stream = np.concatenate([rows[i]["tokens"] for i in range(len(rows))])[:rows.num_tokens]
        found += [bytes(part[1:-1].tolist()) for part in np.split(stream, np.flatnonzero(stream == 256)[1:])]
    assert sorted(found) == sorted(content for content in text_files.values() if content)


def test_the_split_is_by_group_and_holds_for_groups_over_shards(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(300)))
    plan = make_plan(DataConfig(source="jsonl", path=str(lines), validation_fraction=0.2))
    manifest = write(plan, tmp_path / "out")
    assert manifest.splits["train"].documents + manifest.splits["validation"].documents == 300
    assert 40 <= manifest.splits["validation"].documents <= 80  # each record falls by itself: 60, give or take 3 x 7


def test_of_files_the_same_are_held_out_as_by_a_run_that_reads_them(config, tmp_path):
    def documents(stream):
        return sorted(tuple(part.tolist()) for part in np.split(stream, np.flatnonzero(stream == 256)[1:]))

    for seed in range(4):
        changed = dataclasses.replace(config, seed=seed)
        direct = open_corpus(changed).parts["files"].rows["validation"]
        write(make_plan(changed, **SMALL), tmp_path / str(seed))
        prepared = open_corpus(DataConfig(source="prepared", path=str(tmp_path / str(seed)), batch_size=1,
                                          validation_fraction=changed.validation_fraction))
        rows = prepared.parts["prepared"].rows["validation"]
        stream = np.concatenate([rows[i]["tokens"] for i in range(len(rows))])[:rows.num_tokens]
        assert documents(stream) == documents(direct.tokens) and len(documents(stream)) == 3


def test_validation_path(config, tmp_path, write_folder):
    held_out = write_folder({"x.txt": "held out", "part0/file0.txt": "a name that path has too"}, "held_out")
    manifest = write(make_plan(dataclasses.replace(config, validation_path=held_out), **SMALL), tmp_path / "out")
    assert manifest.splits["validation"].documents == 2 and manifest.splits["train"].documents == 11


def test_the_first_of_documents_with_one_content_is_kept(config, tmp_path, write_folder, text_files):
    again = {f"zz/copy{i}.txt": content for i, content in enumerate(text_files.values()) if content}
    write_folder(again)
    plan = make_plan(dataclasses.replace(config, drop_duplicates=True), **SMALL)
    found = {}
    for shard in plan.shards:
        found |= digests(plan.settings, shard)
    dropped = find_duplicates(found)
    names = {piece.number: piece.piece.name for shard in plan.shards for piece in shard.pieces}
    assert {names[number] for number in dropped} == set(again) and set(dropped.values()) == {frozenset({0})}
    manifest = write(plan, tmp_path / "out", dropped)
    assert manifest.documents == 11 and manifest.skipped == {"duplicate": 11, "empty": 1}
    assert find_duplicates({3: b"a" * 16 + b"b" * 16 + b"a" * 16, 1: b"b" * 16}) == {3: frozenset({1, 2})}


def test_a_copy_of_what_is_held_out_is_not_trained_on(config, tmp_path, write_folder, text_files):
    held_out = write_folder({"zzz.txt": text_files["part0/file6.txt"]}, "held_out")
    plan = make_plan(dataclasses.replace(config, drop_duplicates=True, validation_path=held_out), **SMALL)
    found = {}
    for shard in plan.shards:
        found |= digests(plan.settings, shard)
    manifest = write(plan, tmp_path / "out", find_duplicates(found))
    assert manifest.splits["validation"].documents == 1 and manifest.splits["train"].documents == 10


def test_other_settings_are_refused_and_named(config, plan, tmp_path):
    begin(plan, tmp_path / "out")
    other = make_plan(dataclasses.replace(config, seed=9), **SMALL)
    with pytest.raises(ValueError, match=r"unfinished corpus of other settings \(seed was 3 and is 9\)"):
        begin(other, tmp_path / "out")
    write(plan, tmp_path / "out")
    with pytest.raises(ValueError, match=r"prepared with other settings \(seed was 3 and is 9\): give the same flags"):
        prepare(other, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert prepare(plan, tmp_path / "out").documents == 11  # finished: nothing is done
    assert contents(tmp_path / "out") == before


def test_a_folder_that_cannot_be_locked_is_written_all_the_same(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EBADF, "Bad file descriptor")  # as NFS says of a folder

    monkeypatch.setattr(fcntl, "flock", flock)
    with local_module.alone(tmp_path / "out"):
        assert (tmp_path / "out").is_dir()
    monkeypatch.undo()
    with pytest.raises(BlockingIOError), local_module.alone(tmp_path / "out"):
        raise BlockingIOError("of something else")


def test_folders_of_others_are_left_alone(plan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"holds other files \(thesis\.tex\)"):
        prepare(plan, tmp_path / "out")
    assert contents(tmp_path / "out").keys() == {"thesis.tex"}
    with pytest.raises(ValueError, match="is a file: name a folder"):
        prepare(plan, tmp_path / "out" / "thesis.tex")
    with pytest.raises(ValueError, match="lies inside the corpus, .*: name a folder beside it"):
        begin(plan, pathlib.Path(plan.settings.config.path) / "prepared")
    with local_module.alone(tmp_path / "other"), pytest.raises(ValueError, match="being written by another command"):
        prepare(plan, tmp_path / "other")


@pytest.mark.parametrize("change, message", [
    ({"source": "jsonl", "path": "lines.jsonl", "validation_fraction": 1e-9},
     "raise --validation_fraction, or give --validation_path"),
    ({"source": "jsonl", "path": "lines.jsonl", "validation_fraction": 1 - 1e-9},
     "holds no document longer than one token to train on"),
    ({"min_bytes": 10**6}, r"no document longer than one token.*11 below data\.min_bytes=1000000 skipped"),
])
def test_nothing_to_hold_out_or_to_train_on(config, tmp_path, monkeypatch, change, message):
    (tmp_path / "lines.jsonl").write_text('{"text": "one document"}\n' * 20)
    monkeypatch.chdir(tmp_path)
    plan = make_plan(dataclasses.replace(config, **change), **SMALL)
    with pytest.raises(ValueError, match=message):
        write(plan, tmp_path / "out")
    assert contents(tmp_path / "out") == {}  # so that other settings can follow
    write(make_plan(config, **SMALL), tmp_path / "out")


def test_a_shard_whose_file_was_cut_is_written_again(plan, tmp_path):
    write(plan, tmp_path / "a")
    for shard in begin(plan, tmp_path / "b"):
        write_shard(plan.settings, shard, {}, tmp_path / "b")
    path = sorted((tmp_path / "b").glob("train-*"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert [shard.index for shard in begin(plan, tmp_path / "b")] == [int(path.name.split("-")[1])]
    write(plan, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("name", ["train-", ".lengths", ".json"])
def test_a_write_that_fails_leaves_nothing_of_its_own(plan, tmp_path, monkeypatch, name):
    """At any file: what was done stays, and the same steps finish."""
    write(plan, tmp_path / "a")
    todo = begin(plan, tmp_path / "b")
    write_shard(plan.settings, todo[0], {}, tmp_path / "b")
    done = contents(tmp_path / "b")
    fsync = os.fsync

    def full(handle):
        if name in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(shard_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(plan.settings, todo[1], {}, tmp_path / "b")
    assert done.items() <= contents(tmp_path / "b").items()
    assert not [path for path in contents(tmp_path / "b") if path.endswith(".tmp")]
    monkeypatch.undo()
    assert [shard.index for shard in begin(plan, tmp_path / "b")] == [shard.index for shard in todo[1:]]
    write(plan, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_progress_moves_within_a_shard_and_ends_at_its_size(tmp_path, capsys, monkeypatch):
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(300)))
    plan = make_plan(DataConfig(source="jsonl", path=str(lines)))
    steps = []
    begin(plan, tmp_path / "out")
    write_shard(plan.settings, plan.shards[0], {}, tmp_path / "out", steps.append)
    assert sum(steps) == plan.size and max(steps[:-1]) < plan.size / 100 and min(steps) >= 0
    monkeypatch.setattr("mtp_jax.data.prepare.progress.LINE_SECONDS", 0)
    with Progress("tokenizing", total=2 * 10**6) as progress:
        progress.update(10**6)
    assert capsys.readouterr().err.startswith("tokenizing: 1.0 of 2.0 MB, ")
