"""Induction: which tokens are scored, that a reader who looks names up is right, and what a curve over steps says."""

import json
import types

import numpy as np
import pytest

from mtp_jax.config import EvaluationConfig
from mtp_jax.data.tasks.names import find_mentions
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.evaluation import command
from mtp_jax.evaluation.likelihood import Reading
from mtp_jax.evaluation.tasks import induction
from tests.evaluation.toy import write_model

STORY = "So Anna saw Bert, and Anna asked Bert. Then Anna told Bert: come, Anna! But Bert left Anna and Bert."
TEXT = "So Qa saw Zu, and Qa asked Zu."


def rows_of(text, window, names=("Qa", "Zu")):
    model = types.SimpleNamespace(window=window, tokenizer=ByteTokenizer())
    return induction.cut(find_mentions(text, names, ByteTokenizer()), model, 0)


def test_the_second_token_is_scored_from_the_second_mention_on():
    row, = rows_of(TEXT, 64)
    assert row.ids[0] == 256 and bytes(row.ids[1:].tolist()) == TEXT.encode()
    assert [chr(token) for token in row.ids[row.first]] == ["a", "u"]
    assert [chr(token) for token in row.ids[row.known]] == ["a", "u"]
    assert [TEXT[place - 2:place] for place in row.known] == ["Qa", "Zu"]  # of the text: BOS is in front


def test_a_name_is_known_only_where_its_row_has_had_it():
    rows = rows_of(TEXT, 11)  # "So Qa saw Z", "u, and Qa a", "sked Zu."
    assert [len(row.ids) for row in rows] == [12, 12, 9]
    assert sum(len(row.known) for row in rows) == 0  # each row has each name once at most
    assert sum(len(row.first) for row in rows) == 3  # the first Zu is cut in two
    whole = rows_of(TEXT, 64)
    assert sum(len(row.known) + len(row.first) for row in whole) == 4


class Looker:
    """Reads like a model that repeats what followed the same token last; head 2 knows the text, head 3 nothing."""

    def __init__(self, model, *, batch_size):
        del model, batch_size

    def read(self, rows, *, heads):
        found = []
        for row in rows:
            after, top = {}, []
            for this, following in zip(row[:-1].tolist(), row[1:].tolist()):
                top.append(after.get(this, -1))
                after[this] = following
            found.append(Reading({}, {1: np.array(top), 2: row[2:], 3: np.full(len(row) - 3, -1)}))
        return found


def test_who_looks_names_up_is_right_after_the_first_mention_only(monkeypatch):
    monkeypatch.setattr(induction, "Scorer", Looker)
    counts = induction.read(rows_of(TEXT, 64), types.SimpleNamespace(heads=3), stories=1, batch_size=4)
    np.testing.assert_array_equal(counts, [[[2, 2], [2, 2], [0, 2], [0, 2]]])


def test_what_a_curve_says():
    curve = [{"step": step, "tokens": 10 * step, "accuracy": accuracy}
             for step, accuracy in ((1, 0.1), (2, 0.6), (3, 0.9), (4, 0.8))]
    assert induction.summarise(curve, 0.5) == {"best_accuracy": 0.9, "best_step": 3.0, "mean_accuracy":
                                               pytest.approx(0.6), "tokens_to_threshold": 20.0}
    assert "tokens_to_threshold" not in induction.summarise(curve, 0.95)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("induction")
    (folder / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n"
                                               for text in (STORY, "No name.", STORY)))
    return folder, write_model(folder / "run")


def test_a_run_is_evaluated(run):
    folder, workdir = run
    config = EvaluationConfig(task="induction", workdir=str(workdir), data=str(folder / "held.jsonl"),
                              set=("all_steps=true",))
    printed = command.evaluate(config)
    result = json.loads((workdir / "eval" / "induction.json").read_text())
    assert "accuracy" in printed and [point["step"] for point in result["curve"]] == [3]
    assert len(result["samples"]) == 2  # the story without a name is left out
    assert result["metrics"]["scored"] == sum(sample["scored"] for sample in result["samples"]) > 0
    assert result["metrics"]["head_2_accuracy"] <= 1 and result["metrics"]["mean_accuracy"] == pytest.approx(
        result["metrics"]["accuracy"])


@pytest.mark.parametrize("lines, settings, said", [
    ('{"text": "nobody"}\n', (), "no story with a name"),
    ('{"story": "nobody"}\n', (), "text"),
    (json.dumps({"text": STORY}) + "\n", ("storys=3",), "stories"),
    ("nothing\n", (), "line 1")])
def test_data_that_do_not_fit_are_told(run, lines, settings, said):
    folder, workdir = run
    (folder / "bad.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=said):
        command.evaluate(EvaluationConfig(task="induction", workdir=str(workdir), data=str(folder / "bad.jsonl"),
                                          set=settings))


def test_without_data_the_run_must_say_where_stories_are(run):
    with pytest.raises(ValueError, match="--data is missing"):
        command.evaluate(EvaluationConfig(task="induction", workdir=str(run[1])))
