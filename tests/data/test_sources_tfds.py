"""TensorFlow Datasets: prepared ones read by name, folder and slice, without tensorflow; and what is not there."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import pytest

from mtp_jax.config import DataConfig
from mtp_jax.data import open_corpus, sources
from mtp_jax.data.sources import tfds

MAKE = '''
import json, sys
import numpy as np
import tensorflow_datasets as tfds

class Arithmetic(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "question": tfds.features.Text(), "number": tfds.features.Scalar(np.int64),
            "meta": {"answer": tfds.features.Text()}, "tags": tfds.features.Sequence(tfds.features.Text())}))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(0, 9), "test": self._generate_examples(9, 12)}

    def _generate_examples(self, start, stop):
        for i, line in enumerate(open(sys.argv[1]).readlines()[start:stop]):
            record = json.loads(line)
            yield i, {"question": record["question"], "number": i, "meta": {"answer": record["answer"]}, "tags": ["a"]}

Arithmetic(data_dir=sys.argv[2], file_format="array_record").download_and_prepare()
'''


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data_dir with one dataset of 9 and 3 examples, made without tensorflow from a real file."""
    folder = tmp_path_factory.mktemp("tfds")
    excerpt = pathlib.Path(__file__).parent / "excerpts" / "gsm8k.jsonl"
    (folder / "arithmetic.py").write_text(MAKE)
    subprocess.run([sys.executable, str(folder / "arithmetic.py"), str(excerpt), str(folder / "data")], check=True,
                   capture_output=True, cwd=folder)
    return folder / "data"


@pytest.fixture
def named(data_dir, monkeypatch):
    """Names are looked up in `data_dir`."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    return data_dir


def lines(excerpts, start, stop, field="question"):
    return sorted(json.loads(line)[field].encode() for line in
                  (excerpts / "gsm8k.jsonl").read_text().splitlines()[start:stop])


def test_names_folders_and_splits(named, excerpts, read_all):
    def read(path, field="question"):
        return read_all(source="tfds", path=path, field=field)

    train = read("arithmetic")
    assert sorted(train.values()) == lines(excerpts, 0, 9)
    assert sorted(train) == [f"arithmetic/1.0.0#train@{i}" for i in range(9)]
    folders = ("/arithmetic", "/arithmetic/1.0.0")
    for path in ("arithmetic:1.0.0", "arithmetic#train", *(f"{named}{rest}" for rest in ("", *folders))):
        assert read(path) == train
    assert sorted(read("arithmetic#test").values()) == lines(excerpts, 9, 12)
    assert sorted(read("arithmetic", "meta.answer").values()) == lines(excerpts, 0, 9, "answer")
    head, tail = read("arithmetic#train[:4]"), read(f"{named}/arithmetic#train[4:]")
    assert list(head.values()) + list(tail.values()) == list(train.values()) and len(head) == 4
    assert len(read("arithmetic#train+test")) == 12


def test_pieces_of_any_size(named, monkeypatch):
    config = DataConfig(source="tfds", path="arithmetic", field="question")
    (whole,) = sources.find(config)
    wanted = [(document.name, document.read()) for document in whole.documents()]
    monkeypatch.setattr(tfds, "EXAMPLES", 2)
    for piece_bytes in (1, 2_000):
        monkeypatch.setattr(tfds, "PIECE_BYTES", piece_bytes)
        pieces = sources.find(config)
        assert len(pieces) > 1 and [piece.name for piece in pieces] == sorted({piece.name for piece in pieces})
        found = [(document.name, document.read()) for piece in pickle.loads(pickle.dumps(pieces))
                 for document in piece.documents()]
        assert found == wanted


def test_a_corpus_without_tensorflow(named):
    """Also where it is installed: nothing imports it."""
    code = ("import sys\nfrom mtp_jax.config import DataConfig\nfrom mtp_jax.data import open_corpus\n"
            "corpus = open_corpus(DataConfig(source='tfds', path='arithmetic', validation_path='arithmetic#test', "
            "field='question', seq_len=16, batch_size=1))\n"
            "assert corpus.parts['tfds'].num_groups == {'train': 9, 'validation': 3}\n"
            "print([name for name in ('tensorflow', 'jax', 'grain') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.splitlines() == ["[]"], done.stderr


@pytest.mark.parametrize("path, message", [
    ("", "names no dataset"),
    ("#train", "names no dataset"),
    ("arithmetics", r"'arithmetics' is neither a prepared dataset in .*TFDS_DATA_DIR.*Did you mean \"arithmetic\""),
    ("mnits", r"nor a name that TensorFlow Datasets knows, nor the folder of a prepared one\. Did you mean "
     r"\"mnist\""),
    ("arithmetic:9.9.9", r"is not in .*, but \['arithmetic/1\.0\.0'\]: name a config and version"),
    ("nowhere/else/arithmetic", "is not the folder of a prepared dataset"),
    ("mnist", r"'mnist' is not prepared in .*tensorflow_datasets\.builder\(\"mnist\", data_dir=\".*\", file_format=\""
     r"array_record\"\)\.download_and_prepare\(\)"),
    ("mnist:9.9.9", r"cannot be opened \(.*9\.9\.9.*name a config and version that exist"),
    ("arithmetic#tests", r"'tests' is no split; there are \['train', 'test'\].*Did you mean \"test\""),
    ("arithmetic#train[:80]%", r"'train\[:80\]%' is no split"),
    ("/nowhere/arithmetic", "is not the folder of a prepared dataset: there is no dataset_info.json"),
    ("gs://mine/arithmetic", "lies in a bucket, but its library reads local files only: copy the folder"),
])
def test_what_is_not_there(named, path, message):
    with pytest.raises(ValueError, match=message):
        open_corpus(DataConfig(source="tfds", path=path, field="question"))


@pytest.mark.parametrize("field, message", [
    ("text", r"An example of data\.path='arithmetic' has no data\.field='text', but 'meta\.answer', 'number', "),
    ("questions", r"Did you mean \"question\"\?"),
    ("number", "has Scalar.* no string, as data.field='number'"),
    ("tags", "has Sequence.* no string, as data.field='tags'"),
    ("meta", r"has the fields \['answer'\], no string, as data.field='meta'"),
])
def test_features_that_will_not_do(named, field, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        open_corpus(DataConfig(source="tfds", path="arithmetic", field=field))


def test_several_datasets_in_a_folder(data_dir, tmp_path):
    shutil.copytree(data_dir / "arithmetic" / "1.0.0", tmp_path / "arithmetic" / "1.0.0")
    shutil.copytree(data_dir / "arithmetic" / "1.0.0", tmp_path / "arithmetic" / "2.0.0")
    with pytest.raises(ValueError, match=r"holds several datasets: name one of \['.*1\.0\.0', '.*2\.0\.0'\]"):
        open_corpus(DataConfig(source="tfds", path=str(tmp_path / "arithmetic"), field="question"))


def test_a_dataset_stored_as_tfrecord(data_dir, tmp_path):
    folder = shutil.copytree(data_dir / "arithmetic" / "1.0.0", tmp_path / "arithmetic" / "1.0.0")
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    for path in folder.glob("*.array_record*"):
        path.rename(str(path).replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"is stored as tfrecord, which needs tensorflow: add ArrayRecord files by "
                                         r"`tfds convert_format --dataset_version_dir=.*1\.0\.0 --out_file_format=a"):
        open_corpus(DataConfig(source="tfds", path=str(folder), field="question"))


def test_a_dataset_with_a_file_cut_short(data_dir, tmp_path):
    folder = shutil.copytree(data_dir / "arithmetic" / "1.0.0", tmp_path / "arithmetic" / "1.0.0")
    (path,) = folder.glob("*train*")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="the files in .* are cut short or damaged"):
        open_corpus(DataConfig(source="tfds", path=str(folder), field="question"))
