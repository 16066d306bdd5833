"""The attention probe as a command: on a run's workdir and on a converted model; what it writes, prints and refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mtp_jax.analysis.probes import attention_command, attention_figure, attention_run
from mtp_jax.analysis.probes.attention import Site, average, record
from mtp_jax.analysis.probes.attention_command import Options
from mtp_jax.analysis.probes.attention_run import equal_questions
from mtp_jax.convert import hf
from mtp_jax.convert.command import convert
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding.load import load_model
from tests.convert.models import make_arrays, make_config, make_model, make_workdir, options

ENCODE = ByteTokenizer().encode
BOS = ByteTokenizer.bos_id
TEXTS = ["What is 3?", "Who am I?!", "Tell me all."]  # of 10, 10 and 12 bytes


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("run") / "run", make_config())


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"answer": "3", "problem": text}) + "\n" for text in TEXTS))
    return path


def probe(capsys, **fields):
    """Runs the command; returns the JSON that it wrote and the lines that it printed."""
    assert attention_command.run(Options(**{name: str(value) if name in ("workdir", "data", "out") else value
                                            for name, value in fields.items()})) == 0
    lines = capsys.readouterr().out.splitlines()
    path, picture = lines[-2:]
    with open(picture, "rb") as file:
        assert picture == path.removesuffix(".json") + ".png" and file.read(4) == b"\x89PNG"
    with open(path) as file:
        return json.load(file), lines


def test_what_a_run_is_found_to_do(workdir, data, tmp_path, capsys):
    found, lines = probe(capsys, workdir=workdir, head=2, instruction="Say: ", data=data, prompts=2, k=3,
                         meaningful="so ", out=tmp_path / "new" / "out.json")
    assert (found["prompts"], found["question_tokens"], found["questions"]) == (2, 10, TEXTS[:2])
    assert found["site"] == dict(layer=0, head=2, prediction_head=None, loop=None)
    tokens = {name: one["tokens"] for name, one in found["conditions"].items()}
    assert tokens == dict(none=16, meaningless=19, meaningful=25, random=19)
    one, plain = found["conditions"]["meaningful"], found["conditions"]["none"]
    assert (one["filler_start"], one["filler_end"], one["question_start"]) == (6, 15, 15)
    model = load_model(workdir)
    rows = [np.concatenate([[BOS], ENCODE("Say: " + "so " * 3 + text)]) for text in TEXTS[:2]]
    weights = [record(model, row[None], Site(0, 2)).weights_BxLxL[0] for row in rows]
    mean = np.mean([average(weight) for weight in weights], axis=0)
    np.testing.assert_allclose(one["average"], mean, rtol=1e-5)
    np.testing.assert_allclose(one["average_kept"], np.delete(mean, np.s_[6:15]), rtol=1e-5)
    np.testing.assert_allclose(one["retained"], np.mean([1 - w[15:, 6:15].sum(1) for w in weights], axis=0), rtol=1e-5)
    assert len(plain["average_kept"]) == len(one["average_kept"]) == 15 and "identity" not in plain
    assert one["inserted_tokens"]["highest"] == pytest.approx(mean[6:15].max(), rel=1e-5)
    # The printed numbers are those of the file.
    assert "layer 0 of the trunk, attention head 2, 2 prompts of 16 tokens, the question's 10" in lines[0]
    at = next(i for i, line in enumerate(lines) if line.startswith("meaningful, between: 3 x 'so ': 9 tokens"))
    assert f"receive {one['tokens_behind']['change']:+.1%}" in lines[at + 1]
    assert f"{one['identity']['deviation_behind']:.1e} behind the run" in lines[at + 5]
    assert one["identity"]["deviation_behind"] < 1e-4 < one["identity"]["deviation_before"]  # as it is layer 0


@pytest.mark.slow
def test_a_converted_model_and_the_place_where_it_is_written(tmp_path, capsys):
    config = make_config(num_heads=1, vocab_multiple=128)
    source = tmp_path / "hf"
    source.mkdir()
    hf.write(make_model(config, make_arrays(config)), source, options("run", source, "hf"))
    convert(options(source, tmp_path / "run", "workdir", src_format="hf"))
    found, lines = probe(capsys, workdir=tmp_path / "run", prediction_head=1, question=("Who am I?",), k=4,
                         condition=("meaningless",), position="before", leave_out_first=True)
    assert lines[-2] == str(tmp_path / "run" / "probes" / "attention-prediction1-layer0-head0.json")
    assert found["conditions"].keys() == {"none", "meaningless"}
    found, _ = probe(capsys, workdir=tmp_path / "run", question=("Who am I?",), k=4)
    assert all(one["identity"]["deviation_behind"] < 1e-4 for one in list(found["conditions"].values())[1:])


def test_the_curves_of_the_picture():
    plain = dict(average=np.arange(5), average_kept=np.arange(5), filler_start=2, filler_end=2, question_start=2,
                 inserted="nothing")
    other = dict(average=np.arange(8) + 10, average_kept=np.arange(5) + 10, filler_start=2, filler_end=5,
                 question_start=5, inserted="3 x '/': 3 tokens (as one text 1)")
    for first in (0, 1):
        top, bottom = attention_figure._figure({"none": plain, "meaningless": other}, "title", first).axes
        drawn = {panel: [line.get_xydata()[:, 1].tolist() for line in panel.lines[:2]] for panel in (top, bottom)}
        assert drawn[top] == [list(range(first, 5)), list(range(10 + first, 15))]
        assert drawn[bottom] == [list(range(first, 5)), list(range(10 + first, 18))]
        assert [text.get_text() for text in top.get_legend().get_texts()] == ["none", "meaningless: 3 x '/': 3 tokens"]
        assert ("first left out" in top.get_title()) == bool(first)


@pytest.mark.parametrize("fields, message", [
    (dict(question=("a",), data="x"), "one of the two"), ({}, "one of the two"),
    (dict(question=("a",), workdir=""), "--workdir is missing"),
    (dict(question=("a",), prompts=2), "--prompts=2 counts questions of --data: repeat --question"),
    (dict(question=("a",), workdir="nowhere", out="x.png"), "--out=x.png must end in .json"),
    (dict(question=("a",), condition=("none",)), "none alone inserts nothing"),
    (dict(question=("a",), workdir="nowhere", sentences="nowhere.txt"), "--sentences=nowhere.txt is no file"),
    (dict(question=("a",), k=0), "--k=0 must be at least 1"), (dict(question=("a",), condition=("meaningles",)),
                                                               "--condition='meaningles'.*meaningless"),
    (dict(question=("a",), question_tokens=-1), "--question_tokens=-1"),
    (dict(question=("a",), position="middle"), "--position='middle'"),
    (dict(question=("a",), loop=2), "--loop=2.*is run once"),
    (dict(question=("a" * 20,), k=20), "'meaningless' needs 41 tokens, 20 of them inserted, and the window holds 32"),
])
def test_what_it_refuses(workdir, fields, message):
    with pytest.raises(ValueError, match=message):
        attention_command.run(Options(**{"workdir": str(workdir), "k": 2, **fields}))


def test_the_control_draws_from_the_sentences_given(workdir, tmp_path, monkeypatch):
    class Drawn(Exception):
        """Sentences."""

    def fillers(*asked, sentences, **more):
        raise Drawn(sentences)

    monkeypatch.setattr(attention_run, "fillers", fillers)
    (tmp_path / "own.txt").write_text("One.\n\n Two. \n")
    with pytest.raises(Drawn) as drawn:
        attention_command.run(Options(workdir=str(workdir), question=("a",), sentences=str(tmp_path / "own.txt")))
    assert drawn.value.args[0] == ("One.", "Two.")


@pytest.mark.parametrize("fields, message", [
    (dict(question=("a", "bc")), "The questions have 1, 2 tokens, and only those of one length"),
    (dict(question=("a",), question_tokens=2), "--question_tokens=2: no question has so many tokens"),
    (dict(prompts=3), "--prompts=3: only 2 questions of .* have 10 tokens, the most frequent length"),
    (dict(field="question"), r"line 1 has the fields \['answer', 'problem'\], and none of question that holds text"),
])
def test_questions_that_cannot_be_averaged(data, fields, message):
    with pytest.raises(ValueError, match=message):
        equal_questions(ByteTokenizer(), Options(data="" if "question" in fields else str(data), **fields))


def test_questions_of_one_length(data):
    for prompts, cut, wanted in ((1, 0, ["What is 3?"]), (2, 0, TEXTS[:2]), (3, 4, ["What", "Who ", "Tell"])):
        rows = equal_questions(ByteTokenizer(), Options(data=str(data), prompts=prompts, question_tokens=cut))
        assert [ByteTokenizer().decode(row) for row in rows] == wanted


def test_help_needs_no_jax():
    done = subprocess.run([sys.executable, "-c", "import sys, mtp_jax.analysis.probes.attention_command\n"
                           "print({'jax', 'numpy', 'matplotlib'} & set(sys.modules))"], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
