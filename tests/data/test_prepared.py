"""Rows read from a prepared folder against the rows of the same documents in memory; damage and wrong settings."""

import contextlib
import dataclasses
import json
import os
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.config import DataConfig, MixtureConfig
from mtp_jax.data import ByteTokenizer, build_rows, open_corpus, prepared
from mtp_jax.data.prepare import begin, finish, make_plan, write_shard
from mtp_jax.data.prepare.local import prepare as local_prepare
from mtp_jax.data.split import shuffled_names
from mtp_jax.data.tokenizer import TOKENIZERS, build_tokenizer

SEQ_LEN = 12


def prepare(config, output, **kwargs):
    """Prepares a corpus in this process; returns its plan and manifest."""
    plan = make_plan(config, **kwargs)
    for shard in begin(plan, output):
        write_shard(plan.settings, shard, {}, output)
    return plan, finish(plan, output)


def write_files(folder, documents):
    """Writes documents, {name: bytes}, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in documents.items():
        (folder / name).write_bytes(content)
    return str(folder)


def rows_in_memory(plan, split, folder, seq_len):
    """Returns the rows of the files in a folder, in the order that the plan's shards give them."""
    tokenizer = build_tokenizer(plan.settings.config)
    ids = [tokenizer.encode((pathlib.Path(folder) / name).read_bytes())
           for shard in plan.shards if shard.split == split
           for name in shuffled_names([piece.piece.name for piece in shard.pieces], seed=plan.settings.config.seed,
                                      purpose="documents")]
    return build_rows(ids, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, seq_len=seq_len)


@contextlib.contextmanager
def small_records():
    """Records of 8 tokens and an index of every third bound, so that few documents reach over all edges."""
    with mock.patch.multiple("mtp_jax.data.prepare.shard", RECORD_TOKENS=8), \
            mock.patch.multiple("mtp_jax.data.prepared", RECORD_TOKENS=8, INDEX_STEP=3), \
            mock.patch.multiple("mtp_jax.data.manifest", INDEX_STEP=3), \
            mock.patch.multiple("mtp_jax.data.prepare.folder", INDEX_STEP=3), \
            mock.patch("os.fsync"):  # most of the time, and no power is lost here
        yield


def assert_equal(got, expected):
    assert len(got) == len(expected) and got.num_tokens == expected.num_tokens
    for row in range(len(expected) + 2):  # those past the end are padding
        for name, values in expected[row].items():
            assert got[row][name].dtype == values.dtype and np.array_equal(got[row][name], values), (row, name)


# With BOS and EOS: shorter than a row, exactly a row, exactly a record, longer than several rows.
lengths = st.one_of(st.sampled_from([1, 2, SEQ_LEN - 2, SEQ_LEN, 6, 14]), st.integers(1, 5 * SEQ_LEN))


@settings(max_examples=25)
@given(st.lists(lengths, min_size=1, max_size=30), st.integers(20, 400), st.sampled_from([1, 5, SEQ_LEN, 8, 100]))
def test_rows_equal_those_in_memory(lengths, shard_bytes, seq_len):
    rng = np.random.default_rng(len(lengths))
    documents = {f"d{i:02d}": rng.integers(1, 256, length).astype(np.uint8).tobytes()
                 for i, length in enumerate([4, *lengths])}
    with tempfile.TemporaryDirectory() as name, small_records():
        root = pathlib.Path(name)
        held_out = write_files(root / "held_out", {"h0": b"held", "h1": b"out, and more than a record"})
        config = DataConfig(source="files", path=write_files(root / "text", documents), validation_path=held_out)
        plan, manifest = prepare(config, root / "out", min_shard_bytes=shard_bytes, max_shard_bytes=shard_bytes)
        opened = open_corpus(DataConfig(source="prepared", path=str(root / "out"), seq_len=seq_len, batch_size=1))
        for split, folder in (("train", config.path), ("validation", held_out)):
            assert_equal(opened.parts["prepared"].rows[split], rows_in_memory(plan, split, folder, seq_len))


@pytest.fixture
def documents():
    rng = np.random.default_rng(1)
    return {f"file{i}.txt": rng.integers(1, 256, n).astype(np.uint8).tobytes()
            for i, n in enumerate([30, 32, 34, 62, *rng.integers(1, 3000, 40)])}


@pytest.fixture
def folder(tmp_path, documents):
    """A prepared corpus of several shards."""
    text = DataConfig(source="files", path=write_files(tmp_path / "text", documents), validation_fraction=0.2)
    plan, manifest = prepare(text, tmp_path / "out", min_shard_bytes=10_000, max_shard_bytes=10_000)
    assert len(manifest.splits["train"].shards) > 3
    return tmp_path / "out"


@pytest.fixture
def config(folder):
    return DataConfig(source="prepared", path=str(folder), seq_len=32, batch_size=4)


def test_one_shard_is_the_corpus_that_the_text_would_be(tmp_path, documents):
    """Where the shares of the split agree, rows equal those of training on the text itself."""
    held_out = write_files(tmp_path / "held_out", {"h": b"held out", "i": b"too"})
    text = DataConfig(source="files", path=write_files(tmp_path / "text", documents), validation_path=held_out, seed=5)
    prepare(text, tmp_path / "out")
    direct = open_corpus(dataclasses.replace(text, seq_len=32)).parts["files"]
    read = open_corpus(DataConfig(source="prepared", path=str(tmp_path / "out"), seq_len=32)).parts["prepared"]
    assert_equal(read.rows["train"], direct.rows["train"])
    assert read.num_documents == direct.num_documents and read.num_groups == direct.num_groups


def test_every_document_is_there_once(config, documents):
    found = []
    for rows in open_corpus(config).parts["prepared"].rows.values():
        stream = np.concatenate([rows[i]["tokens"] for i in range(len(rows))])[:rows.num_tokens]
        found += [part.astype(np.uint8).tobytes() for part in np.split(stream, np.flatnonzero(stream == 256)[1:])]
    assert sorted(part[1:-1] for part in found) == sorted(documents.values())


def test_resume_is_exact(config):
    corpus = open_corpus(config)
    steps = 2 * (corpus.num_rows("train") // 4) + 3  # over two ends of an epoch
    with corpus.train_batches() as batches:
        expected = [next(batches) for _ in range(steps + 1)]
    for step in range(0, steps, 7):
        with open_corpus(config).train_batches(next_row=4 * step) as batches:
            got = next(batches)
        assert all(np.array_equal(got[name], expected[step][name]) for name in got), step
    with open_corpus(dataclasses.replace(config, num_workers=1)).train_batches(next_row=4 * 5) as batches:
        for step in range(5, 9):
            got = next(batches)
            assert all(np.array_equal(got[name], expected[step][name]) for name in got), step


def test_threads_and_pickles_read_the_same(config, monkeypatch):
    monkeypatch.setattr(prepared, "OPEN_READERS", 2)  # fewer than there are shards
    rows = open_corpus(config).parts["prepared"].rows["train"]
    expected = [rows[i]["tokens"] for i in range(len(rows))]
    again = pickle.loads(pickle.dumps(rows))
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, len(rows), 200).tolist():
            if not np.array_equal(again[i]["tokens"], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(prepared._readers) == 2


def test_files_that_are_open_do_not_grow_with_the_sources(config, folder, monkeypatch):
    monkeypatch.setattr(prepared, "OPEN_READERS", 3)
    parts = [shutil.copytree(folder, folder.parent / f"copy{i}") for i in range(4)]
    mixture = tuple(MixtureConfig(part.name, source="prepared", path=str(part)) for part in parts)
    before = len(os.listdir("/dev/fd")) - len(prepared._readers)
    corpus = open_corpus(DataConfig(seq_len=32, batch_size=4, mixture=mixture))
    everything = [rows for part in corpus.parts.values() for rows in part.rows.values()]
    for rows in everything:
        for row in range(len(rows)):
            rows[row]
    assert len(os.listdir("/dev/fd")) - before <= 3 + len(everything)  # shards, and an index each
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # as if so many were open
    try:
        with pytest.raises(ValueError, match=r"cannot be read \(Too many open files\): .*ulimit"):
            everything[0][0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    everything[0][0]


def test_prepared_parts_of_a_mixture(config, write_folder, text_files):
    config = DataConfig(seq_len=32, batch_size=4, mixture=(
        MixtureConfig(name="read", source="prepared", path=config.path, weight=0.5),
        MixtureConfig(name="text", source="files", path=write_folder(text_files), weight=0.5)))
    corpus = open_corpus(config)
    assert list(corpus.parts) == ["read", "text"]
    with corpus.train_batches() as batches:
        expected = [next(batches) for _ in range(6)]
    with open_corpus(config).train_batches(next_row=5 * 4) as batches:
        assert np.array_equal(next(batches)["tokens"], expected[5]["tokens"])


def test_summary_and_hash(config):
    corpus = open_corpus(config)
    manifest = json.loads((pathlib.Path(config.path) / "manifest.json").read_text())
    assert "44 documents" in corpus.summary() and corpus.hash == manifest["hash"]
    assert corpus.num_tokens == manifest["tokens"]


def refused(config):
    with pytest.raises(ValueError) as error:
        open_corpus(config)
    return str(error.value)


@pytest.mark.parametrize("file", ["train-00001-of-*", "validation-0*", "train.index"])
def test_a_file_that_is_cut_short_is_named(config, folder, file):
    (path,) = list(folder.glob(file))[:1]
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    message = refused(config)
    assert str(path) in message and f"{len(data):,}" in message and f"{len(data) - 100:,}" in message
    assert "cut short" in message and "prepare the corpus anew" in message
    path.unlink()
    assert f"{path} is missing" in refused(config)


def test_damage_inside_a_shard_names_it(config, folder):
    rows = open_corpus(config).parts["prepared"].rows["train"]
    for row in range(len(rows)):
        rows[row]
    path = folder / rows._split.shards[1].file
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.unlink()  # another file takes the place of the one that is open
    path.write_bytes(data)
    rows = open_corpus(config).parts["prepared"].rows["train"]
    with pytest.raises(ValueError, match=f"{path.name} is damaged.*hash mismatch"):
        for row in range(len(rows)):
            rows[row]


def test_a_shard_of_another_corpus_is_noticed(config, folder):
    shards = open_corpus(config).parts["prepared"].rows["train"]._split.shards
    first = next(shard for shard in shards if shard.records == 1)
    other = write_files(folder.parent / "other", {"x": b"x" * 17_000})
    held_out = write_files(folder.parent / "held_out", {"h": b"held out"})
    prepare(DataConfig(source="files", path=other, validation_path=held_out), folder.parent / "second")
    (path,) = (folder.parent / "second").glob("train-*.array_record")
    assert path.stat().st_size == first.size  # for sizes are multiples of 64 kB
    (folder / first.file).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=f"{first.file} is damaged .2 records, 1 were written"):
        rows = open_corpus(config).parts["prepared"].rows["train"]
        for row in range(len(rows)):
            rows[row]


@pytest.mark.parametrize("change", [lambda bounds: bounds[3], lambda bounds: bounds[5] - 1])
def test_damage_inside_the_index_is_noticed(config, folder, change):
    bounds = np.fromfile(folder / "train.index", "<i8")
    bounds[5] = change(bounds)
    bounds.tofile(folder / "train.index")
    rows = open_corpus(config).parts["prepared"].rows["train"]
    with pytest.raises(ValueError, match=r"train\.index is damaged"):
        for row in range(len(rows)):
            rows[row]


def test_another_tokenizer_is_refused(config, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"] |= {"hash": "ab" * 32, "name": "code.json", "file": "tokenizer.json"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    message = refused(config)
    assert "data.tokenizer='bytes'" in message and "'code.json', abababab" in message
    assert f"--config.data.tokenizer={folder}/tokenizer.json" in message


def test_another_format_is_refused(config, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 9}))
    assert "has format 9, and this mtp_jax reads 1" in refused(config)
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "version": "x"}))
    assert "is not the manifest of a prepared corpus" in refused(config)
    (folder / "manifest.json").write_text("{")
    assert "is not the manifest of a prepared corpus" in refused(config)
    (folder / "manifest.json").unlink()
    assert "has no manifest.json" in refused(config)
    assert "does not exist" in refused(dataclasses.replace(config, path=str(folder / "none")))
    assert "data.path='' is empty" in refused(dataclasses.replace(config, path=""))


@pytest.mark.parametrize("field, value", [("extensions", (".py",)), ("min_bytes", 3), ("drop_duplicates", True),
                                          ("validation_path", "x"), ("validation_fraction", 0.3), ("field", "body")])
def test_settings_that_took_effect_in_prepare_are_refused(config, field, value):
    assert f"data.{field}={value!r} has no effect" in refused(dataclasses.replace(config, **{field: value}))


def test_the_seed_orders_rows_and_leaves_the_split_alone(config):
    corpora = [open_corpus(dataclasses.replace(config, seed=seed, validation_fraction=0.2)) for seed in (0, 1)]
    assert corpora[0].hash == corpora[1].hash
    first = []
    for corpus in corpora:
        with corpus.train_batches() as batches:
            first.append(next(batches)["tokens"])
    assert not np.array_equal(*first)


def test_a_prepared_corpus_is_no_source_of_documents(config, folder):
    with pytest.raises(ValueError, match="holds tokens and no documents: name the source"):
        make_plan(config)


def bpe_json(vocab_size, **special):
    """Returns a small tokenizer.json, and the tokenizer_config.json that names its special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.train_from_iterator(["some text to merge some text of"], trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(special.values()), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return model.to_str(), json.dumps(special)


@pytest.mark.parametrize("as_folder", [False, True])
def test_the_tokenizers_files_come_along(tmp_path, as_folder):
    source = tmp_path / "tokenizer"
    source.mkdir()
    for name, text in zip(("tokenizer.json", "tokenizer_config.json"),
                          bpe_json(270, bos_token="<one>", eos_token="<two>")):
        (source / name).write_text(text)
    texts = {f"{i}.txt": f"some text of file {i}".encode() for i in range(20)}
    text = DataConfig(source="files", path=write_files(tmp_path / "text", texts), validation_fraction=0.3,
                      tokenizer=str(source if as_folder else source / "tokenizer.json"))
    _, manifest = prepare(text, tmp_path / "out")
    config = DataConfig(source="prepared", path=str(tmp_path / "out"), seq_len=16, batch_size=1)
    assert f"--config.data.tokenizer={tmp_path}/out/tokenizer.json" in refused(config)
    corpus = open_corpus(dataclasses.replace(config, tokenizer=str(tmp_path / "out" / "tokenizer.json")))
    assert corpus.tokenizer.hash == build_tokenizer(text).hash == manifest.tokenizer["hash"]
    rows = corpus.parts["prepared"].rows["train"]
    assert rows[0]["tokens"][0] == corpus.tokenizer.bos_id
    assert corpus.tokenizer.decode(rows[0]["tokens"]).startswith("some text of")
    assert manifest.bytes == sum(map(len, texts.values())) > manifest.tokens


def test_ids_above_16_bits(tmp_path, monkeypatch):
    class Wide(ByteTokenizer):
        vocab_size, bos_id, eos_id, pad_id, hash = 70_003, 70_000, 70_001, 70_002, "wide"

        def encode_batch(self, texts):
            return [self.encode(text).astype(np.uint32) + 69_000 for text in texts]

    monkeypatch.setitem(TOKENIZERS, "wide", lambda config: Wide())
    text = DataConfig(source="files", path=write_files(tmp_path / "text", {f"{i}": b"abc" for i in range(9)}),
                      validation_fraction=0.3, tokenizer="wide")
    assert prepare(text, tmp_path / "out")[1].dtype == "uint32"
    rows = open_corpus(DataConfig(source="prepared", path=str(tmp_path / "out"), seq_len=5, batch_size=1,
                                  tokenizer="wide")).parts["prepared"].rows["train"]
    assert rows[0]["tokens"].tolist() == [70_000, 69_097, 69_098, 69_099, 70_001]


def test_a_bucket_holds_a_prepared_corpus(config, tmp_path, documents, bucket, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content in documents.items():
        bucket.pipe(f"/b/text/{name}", content)
    text = DataConfig(source="files", path="gs://b/text", validation_fraction=0.2)
    sizes = {"min_shard_bytes": 10_000, "max_shard_bytes": 10_000}
    _, manifest = prepare(text, "gs://b/out", **sizes)
    local = open_corpus(config)
    assert manifest.hash == local.hash  # as the folder of the same documents has
    assert not [path for path in bucket.store if "unfinished" in path or path.endswith(".tmp")]
    remote = open_corpus(dataclasses.replace(config, path="gs://b/out"))
    for split in ("train", "validation"):
        assert_equal(remote.parts["prepared"].rows[split], local.parts["prepared"].rows[split])
    assert local_prepare(make_plan(text, **sizes), "gs://b/out").hash == manifest.hash  # finished
    bucket.pipe("/b/out/train.index", b"short")
    assert "gs://b/out/train.index has 5 bytes" in refused(dataclasses.replace(config, path="gs://b/out"))


def test_neither_jax_nor_grain_is_needed_to_prepare(tmp_path, documents):
    write_files(tmp_path / "text", documents)
    code = ("import sys\nsys.modules.update(dict.fromkeys(['jax', 'flax', 'grain', 'tensorflow', 'orbax']))\n"
            "from mtp_jax.config import DataConfig\nfrom mtp_jax.data.prepare import *\n"
            f"plan = make_plan(DataConfig(source='files', path={str(tmp_path / 'text')!r}, validation_fraction=0.2))\n"
            f"for shard in begin(plan, {str(tmp_path / 'out')!r}):\n"
            f"    write_shard(plan.settings, shard, {{}}, {str(tmp_path / 'out')!r})\n"
            f"print(finish(plan, {str(tmp_path / 'out')!r}).documents)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          cwd=pathlib.Path(__file__).parent.parent.parent)
    assert done.stdout == "44\n", done.stderr
