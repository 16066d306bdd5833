"""Training a byte-level BPE: on the training documents alone, always the same file, and what the command says."""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.config import DataConfig
from mtp_jax.data import ByteTokenizer, Document, bpe, build_tokenizer, split_groups
from mtp_jax.data.bpe import SMALLEST, measure, train_bpe
from mtp_jax.data.prepare import make_plan
from mtp_jax.data.reading import Skipped, read_both_paths
from mtp_jax.data.sources import SOURCES
from mtp_jax.data.split import is_held_out

ROOT = pathlib.Path(__file__).parent.parent.parent
WORDS = "the quick brown fox jumps over a lazy dog and then sleeps for an hour or two".split()


@pytest.fixture
def config(write_folder):
    """A config over twelve files; file i alone holds the word of i's letter, sixty times."""
    files = {f"{i:02d}.txt": " ".join(WORDS[i:] + WORDS[:i]) * 5 + f" {chr(97 + i) * 9}" * 60 for i in range(12)}
    return DataConfig(source="files", path=write_folder(files), validation_fraction=0.25, seed=3)


def command(*args, **env):
    return subprocess.run([sys.executable, "-m", "mtp_jax.data.train_tokenizer", *args], cwd=ROOT, capture_output=True,
                          text=True, timeout=120, env={**os.environ, **env})


def test_ids_are_specials_then_bytes_then_merges(config):
    trained = train_bpe(config, vocab_size=300)
    tokenizer = trained.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, 1, 2, 300)
    assert len(json.loads(trained.data)["model"]["merges"]) == 300 - SMALLEST
    every_byte = {tokenizer.encode(chr(i))[-1] for i in range(128)}
    assert len(every_byte) == 128 and min(every_byte) == 3


def test_any_text_comes_back(config):
    tokenizer = train_bpe(config, vocab_size=300).tokenizer

    @given(st.text())
    def check(text):
        assert tokenizer.decode(tokenizer.encode(text)) == text

    check()
    for text in ("<|bos|>x<|eos|>", " a", "\r\n\t \x00", "é\u0301 \u212b \U0001f600", "the quick brown"):
        assert tokenizer.decode(tokenizer.encode(text.encode())) == text
    assert len(tokenizer.encode("the quick brown")) < 15  # it merges


def test_held_out_documents_are_not_read_by_the_trainer(config):
    trained = train_bpe(config, vocab_size=360)
    training, held_out = split_groups([f"{i:02d}.txt" for i in range(12)], fraction=0.25, seed=3)
    vocabulary = json.loads(trained.data)["model"]["vocab"]

    def learned(names):
        return {name for name in names if chr(97 + int(name[:2])) * 9 in "".join(vocabulary)}

    assert learned(training) == training and not learned(held_out)
    assert trained.num_documents == {"train": 9, "validation": 3}
    assert sum(trained.num_bytes.values()) == sum(path.stat().st_size for path in pathlib.Path(config.path).iterdir())


def test_a_folder_of_its_own_is_held_out(config, write_folder):
    other = write_folder({"z.txt": "z" * 90}, folder="other")
    trained = train_bpe(dataclasses.replace(config, validation_path=other), vocab_size=300)
    assert trained.num_documents == {"train": 12, "validation": 1}
    assert trained.held_out.num_bytes == 90 and trained.held_out.num_tokens == 90  # nothing of it was learned
    (pathlib.Path(other) / "copy.txt").write_bytes((pathlib.Path(config.path) / "00.txt").read_bytes())
    without = dataclasses.replace(config, validation_path=other, drop_duplicates=True)
    assert train_bpe(without, vocab_size=300).num_documents == {"train": 11, "validation": 2}
    (pathlib.Path(other) / "z.txt").write_bytes(b"\0")
    copies = write_folder({"00.txt": (pathlib.Path(config.path) / "00.txt").read_bytes()}, folder="copies")
    with pytest.raises(ValueError, match=r"data\.path='.*copies' holds no document that passes the filters; .*1 dupl"):
        train_bpe(dataclasses.replace(without, path=copies), vocab_size=300)


@pytest.mark.parametrize("source", ["jsonl", "files"])
def test_what_is_held_out_of_a_prepared_corpus_is_not_read_either(tmp_path, source):
    for i in range(40):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps({"text": f"{chr(0x4e00 + i) * 9} " * 60}) + "\n")
    config = DataConfig(source=source, path=str(tmp_path), validation_fraction=0.25)
    threshold = make_plan(config).settings.threshold
    texts = list(read_both_paths(config, Skipped(), takes_bytes=False))
    of_run, _ = split_groups([text.group for text in texts], fraction=0.25, seed=0)
    of_both = {text.group for text in texts if not is_held_out(text.group, threshold=threshold, seed=0)} & of_run
    assert (of_both < of_run) == (source == "jsonl")
    assert train_bpe(config, vocab_size=262).num_documents == {"train": len(of_both), "validation": 10}


def test_a_sample_is_drawn_from_the_training_documents(config):
    whole = train_bpe(config, vocab_size=300)
    sampled = train_bpe(config, vocab_size=300, sample_bytes=3000)
    assert 0 < sampled.num_bytes["train"] <= 3000 < whole.num_bytes["train"]
    assert sampled.num_documents["validation"] == whole.num_documents["validation"]
    assert train_bpe(config, vocab_size=270, sample_bytes=1).num_documents["train"] == 1


def test_filters_and_duplicates_are_left_out(config):
    folder = pathlib.Path(config.path)
    (folder / "copy.txt").write_bytes((folder / "00.txt").read_bytes())
    (folder / "binary.txt").write_bytes(b"a\0b")
    trained = train_bpe(dataclasses.replace(config, drop_duplicates=True), vocab_size=300)
    assert sum(trained.num_documents.values()) == 12 and "1 binary" in trained.skipped and "1 dup" in trained.skipped


def test_the_measure_counts_bytes_and_tokens():
    measured = measure(ByteTokenizer(), [b"abc", b"", b"de"] * 50)
    assert (measured.num_bytes, measured.num_tokens, measured.bytes_per_token) == (250, 250, 1.0)
    assert measured.tokens_per_second > 0
    assert bpe.Measured(0, 0, 0.0).bytes_per_token == 0


@pytest.mark.parametrize("vocab_size, sample_bytes, message", [
    (258, 0, r"vocab_size=258 is below 259.*<\|bos\|>"), (300, -1, "sample_bytes=-1"),
    (60_000, 0, r"have \d+ merges.*Set vocab_size=\d+ or less")])
def test_bad_sizes_are_refused(config, vocab_size, sample_bytes, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(config, vocab_size=vocab_size, sample_bytes=sample_bytes)


def test_too_large_a_vocabulary_is_told_the_size_that_fits(config):
    with pytest.raises(ValueError, match="Set vocab_size=") as error:
        train_bpe(config, vocab_size=60_000)
    fits = int(str(error.value).split("Set vocab_size=")[1].split()[0])
    assert train_bpe(config, vocab_size=fits).tokenizer.vocab_size == fits
    with pytest.raises(ValueError, match=f"Set vocab_size={fits} or less"):
        train_bpe(config, vocab_size=fits + 1)


@pytest.mark.parametrize("files, message", [
    ({"a.txt": "", "b.txt": b"\0"}, "holds no text.*binary.*empty"), ({"a.txt": "abc"}, "one file of text only"),
    ({"a.txt": "abc", "b.txt": b"ab\xff"}, "b.txt is no UTF-8 at byte 2")])
def test_a_corpus_that_cannot_be_used_is_refused(write_folder, files, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(DataConfig(source="files", path=write_folder(files)), vocab_size=300)


def test_ids_are_no_text(config, monkeypatch):
    monkeypatch.setitem(SOURCES, "ids", lambda config: [Document("a", "a", lambda: np.arange(3))])
    with pytest.raises(ValueError, match="holds token ids, but text is needed"):
        train_bpe(DataConfig(source="ids"), vocab_size=300)


# The command.

def test_the_command_writes_a_tokenizer_twice_the_same(config, tmp_path):
    flags = ["--source=files", f"--path={config.path}", "--seed=3", "--validation_fraction=0.25", "--vocab_size=300"]
    first = command(*flags, f"--output={tmp_path}/new/a.json")
    second = command(*flags, f"--output={tmp_path}/b.json", RAYON_NUM_THREADS="1")
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    data = (tmp_path / "new" / "a.json").read_bytes()
    assert hashlib.sha256(data).digest() == hashlib.sha256((tmp_path / "b.json").read_bytes()).digest()
    assert data == train_bpe(config, vocab_size=300).data and not list(tmp_path.rglob("*.part"))
    assert "Trained on 9 documents" in first.stdout and "3 of 0.00 MB held out" in first.stdout
    assert "300 ids, 41 of them merges" in first.stdout and "bytes a token" in first.stdout
    assert f"--config.data.tokenizer={tmp_path}/new/a.json" in first.stdout and "--config.data.seed=3" in first.stdout
    assert build_tokenizer(DataConfig(tokenizer=str(tmp_path / "b.json"))).vocab_size == 300
    again = command(*flags, f"--output={tmp_path}/b.json")
    assert again.returncode == 1 and "b.json' exists" in again.stderr and "--overwrite" in again.stderr
    assert command(*flags, f"--output={tmp_path}/b.json", "--overwrite").returncode == 0


@pytest.mark.parametrize("flags, message", [
    (["--vocab_size=100"], "error: vocab_size=100"), (["--output=x.bin"], "must end in .json"),
    (["--source=file"], 'Did you mean "files"'), (["--validation_fraction=1"], "must lie between 0 and 1"),
    (["--vocab=3"], "vocab_size"), (["extra"], "unexpected arguments extra: settings are written --NAME=VALUE"),
    (["--output=gs://mine/a.json"], "error: --output='gs://mine/a.json' cannot be written (")])
def test_the_command_explains_what_is_wrong(flags, message, tmp_path):
    done = command(f"--output={tmp_path}/a.json", *flags)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_is_short_and_imports_no_library():
    code = ("import sys, runpy\nsys.argv = ['train_tokenizer', '--help']\ntry:\n"
            "  runpy.run_module('mtp_jax.data.train_tokenizer', run_name='__main__')\nexcept SystemExit:\n"
            "  print(*{'jax', 'grain', 'tokenizers', 'pyarrow', 'tensorflow_datasets'} & set(sys.modules), 'END')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("\nEND") and "--vocab_size" in done.stdout, done.stderr


def test_importing_the_command_defines_no_flags():
    code = "import mtp_jax.data.train_tokenizer\nfrom absl import flags\nassert 'vocab_size' not in flags.FLAGS"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
