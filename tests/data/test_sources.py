"""Which files a source finds, and what it says when it finds none."""

import errno
import importlib.util
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mtp_jax.config import DataConfig
from mtp_jax.data import Document, open_corpus, register_source, sources


def names(path):
    return sorted(document.name for document in sources.find(DataConfig(source="files", path=str(path))))


@pytest.fixture
def project(write_folder):
    found = ("a.py", "b.txt", "src/c.py", "src/deep/er/d.py", "x[1].py")
    left_out = (".git/config", ".hidden.py", "src/.cache/e.py", "src/__pycache__/f.py", "node_modules/g/h.py")
    return write_folder(dict.fromkeys(found + left_out, "text"))


def test_a_folder_without_hidden_files_and_caches(project):
    assert names(project) == ["a.py", "b.txt", "src/c.py", "src/deep/er/d.py", "x[1].py"]
    assert names(project + "/") == names(project)


@pytest.mark.parametrize("pattern, expected", [
    ("*.py", ["a.py", "x[1].py"]),
    ("**/*.py", ["a.py", "src/c.py", "src/deep/er/d.py", "x[1].py"]),
    ("src/**/*.py", ["c.py", "deep/er/d.py"]),
    ("src/**", ["c.py", "deep/er/d.py"]),
    ("src/*/er/?.py", ["deep/er/d.py"]),
    ("s*/[a-c].py", ["src/c.py"]),
    ("[!a].*", ["b.txt"]),
    ("x[1].py", ["x[1].py"]),  # exists as it is written
])
def test_globs(project, pattern, expected):
    # Names start after the part of the glob without wildcards.
    assert names(f"{project}/{pattern}") == expected


def test_relative_paths_and_home(project, monkeypatch):
    monkeypatch.chdir(pathlib.Path(project).parent)
    assert names("corpus/src") == ["c.py", "deep/er/d.py"]
    assert names("corpus/src/*.py") == ["c.py"]
    monkeypatch.chdir(project)
    assert names(".") == names(project)
    assert names("*.txt") == ["b.txt"]
    monkeypatch.setenv("HOME", project)
    assert names("~/src") == ["c.py", "deep/er/d.py"]


def test_links_to_folders_broken_links_and_pipes_are_no_files(project):
    before = names(project)
    os.symlink(project, os.path.join(project, "src", "loop"))
    os.symlink("nowhere", os.path.join(project, "broken.py"))
    os.mkfifo(os.path.join(project, "pipe.py"))
    assert names(project) == before
    os.symlink("a.py", os.path.join(project, "link.py"))
    assert names(project) == sorted([*before, "link.py"])


def test_a_bucket(bucket):
    for name in ("a.py", "src/b.py", "src/c.txt", ".git/config"):
        bucket.pipe(f"gs://mine/corpus/{name}", f"text of {name}".encode())
    assert names("gs://mine/corpus") == ["a.py", "src/b.py", "src/c.txt"]
    assert names("gs://mine/corpus/**/*.py") == ["a.py", "src/b.py"]
    corpus = open_corpus(DataConfig(source="files", path="gs://mine/corpus", batch_size=1, seq_len=8))
    tokens = np.concatenate([rows.tokens for rows in corpus.parts["files"].rows.values()])
    assert "text of src/b.py" in corpus.tokenizer.decode(tokens)
    with pytest.raises(ValueError, match=r"does not exist\. Did you mean \"gs://mine/corpus\"\?"):
        open_corpus(DataConfig(source="files", path="gs://mine/corpse"))


@pytest.mark.parametrize("scheme, library", [("gs", "gcsfs"), ("s3", "s3fs"), ("az", "adlfs")])
@pytest.mark.parametrize("source", ["files", "jsonl", "parquet", "array_record"])
def test_a_bucket_without_its_library(source, scheme, library):
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    with pytest.raises(ValueError, match=rf"data\.path='{scheme}://mine/x\*' cannot be read \(.*install the library "
                                         rf"that reads {scheme}:// paths, `pip install {library}`"):
        open_corpus(DataConfig(source=source, path=f"{scheme}://mine/x*"))


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_path_that_is_no_bucket(scheme):
    with pytest.raises(ValueError, match=rf"data\.path='{scheme}://x/y' cannot be read: {scheme}:// is none of gs://, s3://"):
        open_corpus(DataConfig(source="files", path=f"{scheme}://x/y"))


class Refused(Exception):
    """Like gcsfs's HttpError: no OSError, and of another module."""


@pytest.mark.parametrize("error", [OSError("Forbidden: mine"), PermissionError("Forbidden: mine"),
                                   Refused("Forbidden: mine")])
@pytest.mark.parametrize("path", ["gs://mine/corpus", "gs://mine/corpus/*.txt"])
def test_a_bucket_that_refuses_is_not_called_missing(bucket, monkeypatch, path, error):
    def refuse(self, path, **_):
        raise error

    bucket.pipe("gs://mine/corpus/a.txt", b"text")
    monkeypatch.setattr(type(bucket), "info", refuse)
    with pytest.raises(ValueError, match=r"data\.path='gs://mine/corpus.*' cannot be read \(Forbidden: mine\): check "
                                         "the path.*log in with `gcloud auth application-default login`"):
        open_corpus(DataConfig(source="files", path=path))


def test_a_file_of_a_bucket_that_is_refused(bucket, monkeypatch):
    def refuse(self, *_, **__):
        raise Refused("401,\nAnonymous caller")

    for name in "abc":
        bucket.pipe(f"gs://mine/corpus/{name}.txt", b"text")
    monkeypatch.setattr(type(bucket), "_open", refuse)
    with pytest.raises(ValueError, match=r"data\.path='gs://mine/corpus': a\.txt cannot be read \(401, Anonymous "
                                         r"caller\): check the path"):
        open_corpus(DataConfig(source="files", path="gs://mine/corpus"))


def test_an_error_of_the_program_keeps_its_traceback(bucket, monkeypatch):
    def fail(self, *_, **__):
        raise TypeError("a mistake")

    bucket.pipe("gs://mine/corpus/a.txt", b"text")
    monkeypatch.setattr(type(bucket), "_open", fail)
    with pytest.raises(TypeError, match="a mistake"):
        open_corpus(DataConfig(source="files", path="gs://mine/corpus"))


def test_pieces_know_their_size_and_go_to_other_processes(project, bucket):
    (pathlib.Path(project) / "src/c.py").write_text("longer text")
    bucket.pipe("gs://mine/corpus/a.txt", b"text")
    pieces = {piece.name: piece for piece in sources.find(DataConfig(source="files", path=project))}
    assert {name: piece.size for name, piece in pieces.items()} == {
        "a.py": 4, "b.txt": 4, "src/c.py": 11, "src/deep/er/d.py": 4, "x[1].py": 4}
    (document,) = pickle.loads(pickle.dumps(pieces["src/c.py"])).documents()
    assert document.read() == b"longer text"
    (piece,) = sources.find(DataConfig(source="files", path="gs://mine"))
    assert (piece.name, piece.size) == ("corpus/a.txt", 4)


def test_extensions(project):
    def names(**fields):
        return sorted(piece.name for piece in sources.find(DataConfig(source="files", **fields)))

    assert names(path=project, extensions=(".py",)) == ["a.py", "src/c.py", "src/deep/er/d.py", "x[1].py"]
    assert names(path=f"{project}/*", extensions=(".txt", "].py")) == ["b.txt", "x[1].py"]
    with pytest.raises(ValueError, match=r"data\.extensions=\('\.rs',\) leaves none of the 5 files of data\.path='.*', "
                                         r"which end in \.py \(4\), \.txt \(1\)"):
        names(path=project, extensions=(".rs",))


def test_extensions_without_a_dot(write_folder):
    def names(*extensions):
        config = DataConfig(source="files", path=path, extensions=extensions)
        return sorted(piece.name for piece in sources.find(config))

    path = write_folder(dict.fromkeys(("a.c", "b.doc", "src/Makefile", "src/makefile.c", "c_test.py", "d.py"), "text"))
    assert names("c") == names(".c") == ["a.c", "src/makefile.c"]
    assert names("Makefile", "_test.py") == ["c_test.py", "src/Makefile"]
    with pytest.raises(ValueError, match=r"data\.extensions=\('\.py', ''\) has an empty one.*leave it out"):
        names(".py", "")


@pytest.mark.parametrize("path", ["", "/**/*.py"])
def test_a_folder_that_cannot_be_listed(project, monkeypatch, path):
    def scandir(folder, of_python=os.scandir):
        if os.fspath(folder).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(folder))
        return of_python(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"data\.path='.*': .*/src/deep cannot be read \(Permission denied\): make it"):
        open_corpus(DataConfig(source="files", path=project + path))


@pytest.mark.parametrize("source", ["files", "jsonl", "array_record"])
def test_a_prepared_corpus_is_no_other_source(write_folder, source):
    path = write_folder(dict.fromkeys(("manifest.json", "train.index", "train-00000-of-00001.array_record"), "x"))
    with pytest.raises(ValueError, match="is a prepared corpus, .*: set data.source='prepared'"):
        sources.find(DataConfig(source=source, path=path))


def test_a_link_to_nothing_is_not_proposed_for_itself(tmp_path):
    (tmp_path / "corpus").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"does not exist\. Set it to a folder"):
        sources.find(DataConfig(source="files", path=str(tmp_path / "corpus")))


def test_real_text(excerpts):
    config = DataConfig(source="files", path=str(excerpts), extensions=(".txt",), batch_size=1, seq_len=32)
    corpus = open_corpus(config)
    assert corpus.parts["files"].num_groups == {"train": 1, "validation": 1}
    texts = [corpus.tokenizer.decode(rows.tokens) for rows in corpus.parts["files"].rows.values()]
    assert sorted(texts) == sorted((excerpts / f"{name}.txt").read_text() for name in ("shakespeare", "wikitext"))


@pytest.mark.parametrize("source, fields, remedy", [
    ("stdlib", dict(field="content"), "leave it out"),
    ("stdlib", dict(extensions=(".py",)), "leave it out"),
    ("stdlib", dict(validation_path="x"), "data.validation_fraction"),
    ("files", dict(path=".", field="content"), "leave it out"),
    ("jsonl", dict(path=".", extensions=(".jsonl",)), "by a glob in data.path"),
    ("parquet", dict(path=".", extensions=(".parquet",)), "by a glob in data.path"),
    ("array_record", dict(path=".", extensions=(".x",)), "by a glob in data.path"),
    ("tfds", dict(path="lm1b", extensions=(".x",)), "by a glob in data.path"),
])
def test_a_field_that_a_source_does_not_read_is_refused(source, fields, remedy):
    name = list(fields)[-1]
    with pytest.raises(ValueError, match=rf"data\.{name}=.* is not read by data\.source='{source}': .*{remedy}"):
        sources.find(DataConfig(source=source, **fields))


@pytest.mark.parametrize("source, ending", [("jsonl", r"\.jsonl, .*\.zst"), ("parquet", r"\.parquet, \.pq"),
                                            ("array_record", r"\.array_record, \.arrayrecord")])
def test_a_folder_of_other_files(project, source, ending):
    with pytest.raises(ValueError, match=rf"a folder without files that end in {ending}; those there end in \.py"):
        open_corpus(DataConfig(source=source, path=project))


def test_stdlib_is_code_without_tests():
    pieces = sources.find(DataConfig(source="stdlib"))
    found = {piece.name for piece in pieces}
    assert len(found) == len(pieces) > 300
    assert {"argparse.py", "json/decoder.py"} <= found
    assert all(name.endswith(".py") for name in found)
    banned = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert not [name for name in found if banned & set(name.split("/"))]
    (document,) = next(piece for piece in pieces if piece.name == "argparse.py").documents()
    assert b"class ArgumentParser" in document.read()


def test_unknown_source_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"data\.source='stdlb'.*Did you mean \"stdlib\""):
        open_corpus(DataConfig(source="stdlb"))


def test_empty_path_says_what_to_set():
    with pytest.raises(ValueError, match=r"data\.path='' is empty.*set data\.path to a folder"):
        open_corpus(DataConfig(source="files"))


def test_a_path_that_no_source_reads_is_refused(project):
    with pytest.raises(ValueError, match=r"data\.path='.*' is not read by data\.source='stdlib': set data\.source"):
        open_corpus(DataConfig(source="stdlib", path=project))


def test_missing_path_names_the_nearest_sibling(project):
    with pytest.raises(ValueError, match=r"data\.path='.*/srcs' does not exist\. Did you mean \".*/corpus/src\"\?"):
        open_corpus(DataConfig(source="files", path=f"{project}/srcs"))
    with pytest.raises(ValueError, match=r"does not exist\. Did you mean \".*/corpus/src\"\?"):
        open_corpus(DataConfig(source="files", path=f"{project}/srcs/deep/er"))
    with pytest.raises(ValueError, match=r"data\.path='/qqqqqq/zzz' does not exist\. Set it"):
        open_corpus(DataConfig(source="files", path="/qqqqqq/zzz"))


def test_globs_that_match_nothing(project):
    with pytest.raises(ValueError, match=r"data\.path='.*/\*\.rs' matches no file under .*corpus"):
        open_corpus(DataConfig(source="files", path=f"{project}/*.rs"))
    with pytest.raises(ValueError, match=r"searches in .*/srcs, which does not exist\. Did you mean \".*/src\"\?"):
        open_corpus(DataConfig(source="files", path=f"{project}/srcs/*.py"))


def test_a_folder_without_files(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path='.*' is a folder without files"):
        open_corpus(DataConfig(source="files", path=str(tmp_path)))


def test_a_source_in_one_file(monkeypatch):
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))

    @register_source("poems")
    def poems(config):
        return [Document(name=f"poem-{i}", group=f"book-{i // 2}", read=f"{config.path} {i}".encode) for i in range(8)]

    corpus = open_corpus(DataConfig(source="poems", path="rose", seq_len=16, validation_fraction=0.25, batch_size=1))
    assert corpus.num_documents == 8
    assert corpus.parts["poems"].num_groups == {"train": 3, "validation": 1}  # by book, not by poem
    assert "rose" in corpus.tokenizer.decode(corpus.parts["poems"].rows["train"].tokens)


def test_a_source_may_not_take_another_ones_name(monkeypatch):
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    with pytest.raises(ValueError, match=r"data source 'stdlib' is already registered by stdlib in .*/files\.py"):
        register_source("stdlib")(lambda config: [])
    assert sources.SOURCES["stdlib"] is sources.stdlib


def test_a_module_that_is_run_and_imported_registers_once(tmp_path, monkeypatch):
    """All three kinds of registration have this rule: what registers again from the same place takes the name over."""
    (tmp_path / "poems_module.py").write_text(
        "from mtp_jax.data import register_source\nfrom mtp_jax.model.heads import HeadKind, register_head_kind\n"
        "from mtp_jax.objective.schedules import register_schedule\n"
        "@register_source('poems')\ndef poems(config): ...\n"
        "@register_schedule('poems', heads_may_rest=False)\ndef weights(*_): ...\n"
        "@register_head_kind('poems')\nclass Poems(HeadKind):\n"
        "    def parameters(self, config, rngs): ...\n    def __call__(self, *_, **__): ...\n")
    code = ("import runpy, sys; sys.path.insert(0, sys.argv[1])\n"
            "import poems_module\nfrom mtp_jax.data import sources\n"
            "runpy.run_module('poems_module', run_name='__main__', alter_sys=True)\n"
            "assert sources.SOURCES['poems'] is not poems_module.poems\n"
            "for _ in range(2):  # a notebook's cell, run again after an edit\n"
            "    exec(compile('@sources.register_source(\"cell\")\\ndef cell(config): ...', f'cell-{_}', 'exec'))\n"
            "@sources.register_source('poems')\ndef other(config): ...\n")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=pathlib.Path(__file__).parents[2],
                          capture_output=True, text=True)
    assert "data source 'poems' is already registered by poems in " in done.stderr.splitlines()[-1], done.stderr
