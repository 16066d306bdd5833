"""Calibration: ranks that a plain count finds too, predictions that decoding keeps, a file that is checked."""

import dataclasses
import functools
import json
import types

import numpy as np
import pytest
from absl import logging
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import calibration as files
from mtp_jax.decoding.calibrate import calibrate, calibrate_on, read_text
from mtp_jax.decoding.calibration import Calibration
from mtp_jax.decoding.generate import DecodingModel, generate
from mtp_jax.decoding.tree import Tree
from tests.decoding.made_ranks import make_calibration
from tests.decoding.models import text, trained_model
from tests.decoding.naive import Naive

WINDOW = 64
PROMPT, NEW = 13, 47  # with four heads they fill 64 places of the cache: one program serves all
WIDE = Tree.prune([[0.6, 0.2, 0.1], [0.5, 0.2], [0.4, 0.1]], 12)
KNOWN = types.SimpleNamespace(config=types.SimpleNamespace(num_heads=4), tokenizer=ByteTokenizer(), step=7)


def paths(tree):
    """Returns the ranks on the path to each node but the root."""
    found = [()]
    for parent, rank in zip(tree.parents[1:], tree.ranks[1:]):
        found.append((*found[parent], rank))
    return found[1:]


def accepted(ranks, tree):
    """Returns the depth of the deepest node whose path is what came: the definition."""
    return max((len(path) for path in paths(tree) if path == tuple(ranks[:len(path)])), default=0)


@given(st.integers(0, 100), st.integers(2, 5), st.integers(1, 20), st.floats(0, 1))
def test_expected_tokens_by_the_definition(seed, heads, nodes, right):
    calibration = make_calibration(seed, heads, right, ranks=5)
    for tree in (Tree.chain(heads), Tree.prune(calibration.accuracy, nodes)):
        blocks = []
        for row in calibration.rows:
            place = 0
            while place < len(row):
                blocks.append(1 + accepted(row[place], tree))
                place += blocks[-1]
        assert calibration.expected_tokens(tree) == pytest.approx(np.mean(blocks))
        everywhere = np.concatenate(calibration.rows).tolist()
        shares = [sum(tuple(ranks[:len(path)]) == path for ranks in everywhere) / len(everywhere)
                  for path in paths(tree)]
        assert calibration.expected_tokens_anywhere(tree) == pytest.approx(1 + sum(shares))


def test_blocks_start_more_often_where_guessing_is_hard():
    half = np.repeat(np.array([[0], [9]], np.uint8), 60, axis=0)
    calibration = Calibration(4, 10, (np.repeat(half, 3, axis=1),))
    assert calibration.expected_tokens_anywhere(Tree.chain(4)) == 2.5
    assert calibration.expected_tokens(Tree.chain(4)) == 120 / (60 / 4 + 60)


def test_shares_by_hand():
    calibration = Calibration(3, 2, (np.array([[0, 0], [0, 1], [1, 0]], np.uint8), np.array([[2, 2]], np.uint8)))
    assert calibration.accuracy == [[0.5, 0.25], [0.5, 0.25]]
    assert calibration.expected_tokens_anywhere(Tree.chain(3)) == 1 + 0.5 + 0.25
    assert calibration.positions == 4


@pytest.mark.parametrize("tree", [Tree.chain(5), Tree((-1, 0, 0, 0), (0, 0, 1, 2))])
def test_a_tree_beyond_what_was_measured_is_refused(tree):
    with pytest.raises(ValueError, match="beyond this calibration of 4 heads and ranks below 2"):
        make_calibration(ranks=2).expected_tokens(tree)


def test_the_file_comes_back_as_it_was(tmp_path):
    calibration = make_calibration(step=7, tokenizer=ByteTokenizer.hash, text="tales.txt", text_hash="ab",
                                   prompt_tokens=5, new_tokens=9, costs={"cpu": {"chain": 0.25}})
    path = files.save(calibration, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["calibration.json"] == [path.name]
    found = files.load(tmp_path, KNOWN)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(found.rows, calibration.rows, strict=True))
    for field in dataclasses.fields(Calibration):
        assert field.name == "rows" or getattr(found, field.name) == getattr(calibration, field.name)
    assert {"format", "mtp_jax", "temperature"} < json.loads(path.read_text()).keys()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    files.save(make_calibration(step=7), tmp_path)
    kept = (tmp_path / "calibration.json").read_text()

    def full(self, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(files.epath.Path(tmp_path)), "write_text", full)
    with pytest.raises(ValueError, match="cannot be written .No space left on device"):
        files.save(make_calibration(seed=1), tmp_path)
    assert (tmp_path / "calibration.json").read_text() == kept


@pytest.mark.parametrize("change, message", [
    (lambda facts: {**facts, "format": 2}, "has format 2, this version of mtp_jax reads 1"),
    (lambda facts: [1], "has format None"),
    (lambda facts: {**facts, "heads": 3, "rows": [[[0, 0]]]}, "is of a model of 3 heads, this one has 4"),
    (lambda facts: {**facts, "tokenizer": "ffff"}, "was measured with the tokenizer ffff, this one is"),
    (lambda facts: {name: facts[name] for name in facts if name != "rows"}, "no usable field 'rows'"),
    (lambda facts: {**facts, "heads": "4"}, "no usable field 'heads'"),
    (lambda facts: {**facts, "rows": [[[0, 0]]]}, "ranks or costs are impossible"),
    (lambda facts: {**facts, "rows": [[[0, 0, 11]]]}, "ranks or costs are impossible"),
    (lambda facts: {**facts, "rows": [[]]}, "ranks or costs are impossible"),
    (lambda facts: {**facts, "rows": []}, "ranks or costs are impossible"),
    (lambda facts: {**facts, "rows": [[[0, 0, -1]]]}, "is damaged"),
    (lambda facts: {**facts, "rows": [[[0, 0, 0], [0]]]}, "is damaged"),
    (lambda facts: {**facts, "costs": {"cpu": {"chain": -1.0}}}, "ranks or costs are impossible"),
    (lambda facts: {**facts, "costs": {"cpu": 3}}, "is damaged"),
])
def test_a_file_that_does_not_fit_is_refused(change, message, tmp_path):
    path = files.save(make_calibration(step=7, tokenizer=ByteTokenizer.hash), tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message) as caught:
        files.load(tmp_path, KNOWN)
    assert f"python -m mtp_jax.generate --workdir={tmp_path} --calibrate=TEXT" in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no .*--calibrate=TEXT"):
        files.load(tmp_path, KNOWN)
    path = files.save(make_calibration(), tmp_path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="is damaged .*--calibrate=TEXT"):
        files.load(tmp_path, KNOWN)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is damaged .*--calibrate=TEXT"):
        files.load(tmp_path, KNOWN)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="cannot be read .*--calibrate=TEXT"):
        files.load(tmp_path, KNOWN)


def test_another_checkpoint_is_told_and_used(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: told.append(message % values))
    files.save(make_calibration(step=7), tmp_path)
    files.load(tmp_path, KNOWN)
    assert told == []
    files.save(make_calibration(step=5), tmp_path)
    assert files.load(tmp_path, KNOWN).step == 5
    assert len(told) == 1 and "was measured at step 5, this is step 7" in told[0]


@functools.cache
def make_model():
    """Returns a trained model in fp64, so that ranks are the same whatever the shapes, and its slow twin."""
    spec, params, _ = trained_model()
    model = DecodingModel.from_params(spec, params, tokenizer=ByteTokenizer(), window=WINDOW)
    return model, Naive(spec, params, WINDOW)


def test_ranks_are_those_of_a_plain_count(x64, greedy_only):
    model, naive = make_model()
    found = calibrate(model, text(5, 200), prompts=8, prompt_tokens=PROMPT, new_tokens=NEW, ranks=4)
    ids = ByteTokenizer().encode(text(5, 200)).tolist()
    starts = [round((len(ids) - PROMPT + 1) * i / 7) for i in range(8)]
    prompts = [[ByteTokenizer.bos_id, *ids[start:start + PROMPT - 1]] for start in starts]
    rows = [prompt + new for prompt, (new, _) in zip(prompts, naive.greedy(prompts, NEW, stop=(257,)))]
    ranks = []
    for row, logits in zip(rows, naive.logits(rows)):
        for i in range(PROMPT - 1, len(row) - 4):
            order = np.argsort(-logits[1:, i], axis=-1, kind="stable")
            ranks.append([min(4, order[d - 1].tolist().index(row[i + 1 + d])) for d in (1, 2, 3)])
    assert np.concatenate(found.rows).tolist() == ranks
    shares = [[np.mean([r[d] == rank for r in ranks]) for rank in range(4)] for d in range(3)]
    np.testing.assert_allclose(found.accuracy, shares)
    assert found.accuracy[0][0] > 0.2, "an untrained model would tell nothing"


@pytest.mark.slow
def test_decoding_makes_as_many_tokens_per_forward_as_predicted(x64, greedy_only):
    """On the measured text; the average over all positions is off by more."""
    model, _ = make_model()
    prompts = [[256, *ByteTokenizer().encode(text(seed, 3))[:PROMPT - 1].tolist()] for seed in range(8)]
    found = calibrate_on(model, prompts, new_tokens=NEW)
    off = []
    for tree in (Tree.chain(4), WIDE):
        run = generate(model, prompts, max_new_tokens=NEW, tree=tree)
        made = (run.produced.sum() - len(prompts)) / run.blocks.sum()  # the prompt's own forward gives one
        assert found.expected_tokens(tree) == pytest.approx(made, rel=0.03)
        off.append(abs(found.expected_tokens_anywhere(tree) / made - 1))
    assert max(off) > 0.03


def test_a_row_ends_with_its_stop_token(x64, monkeypatch):
    """The stop token is one of the tokens that head 1 said; what is shorter than N tokens tells nothing."""
    model, naive = make_model()
    prompts = [[256, 104, 101], [256, 32]]
    ends = [(8, "stop"), (3, "stop")]
    rows = [row[:size] for (row, _), (size, _) in zip(naive.greedy(prompts, 8), ends)]

    def ended(model, prompts, **settings):
        return types.SimpleNamespace(tokens=[np.array(row, np.int32) for row in rows],
                                     finished=[why for _, why in ends])

    monkeypatch.setattr("mtp_jax.decoding.calibrate.generate", ended)
    found = calibrate_on(model, prompts)
    assert [len(row) for row in found.rows] == [8 + 1 - 4 + 1, 1]
    rows = [[] for _ in rows]
    with pytest.raises(ValueError, match="ended all 2 continuations within 4 tokens"):
        calibrate_on(model, prompts)


def test_what_cannot_be_calibrated_is_told(x64):
    model, _ = make_model()
    with pytest.raises(ValueError, match="The text tales.txt has 3 tokens, too few for one prompt of 12"):
        calibrate(model, "abc", name="tales.txt", prompt_tokens=12)
    with pytest.raises(ValueError, match="prompts=0 and prompt_tokens=12 must be at least 1 and 2"):
        calibrate(model, "abc", prompts=0, prompt_tokens=12)
    with pytest.raises(ValueError, match="A prompt of 12 tokens and 60 new ones .* do not fit the window of 64"):
        calibrate(model, text(5, 20), prompt_tokens=12, new_tokens=60)
    with pytest.raises(ValueError, match=r"ranks=0 must lie in \[1, 255\]"):
        calibrate(model, text(5, 20), ranks=0)
    with pytest.raises(ValueError, match="2 of the model's 4 heads are loaded: load all"):
        calibrate(dataclasses.replace(model, heads=2), text(5, 20))
    with pytest.raises(ValueError, match="The model has one head, so there are no drafts"):
        one = dataclasses.replace(model.config, num_heads=1)
        calibrate(dataclasses.replace(model, config=one, heads=1), text(5, 20))
    with pytest.raises(ValueError, match="needs the model's tokenizer"):
        calibrate(dataclasses.replace(model, tokenizer=None), text(5, 20))


def test_a_text_is_read_whatever_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("é", encoding="utf-8")
    assert read_text(str(tmp_path / "a.txt")) == "é"
    (tmp_path / "b.txt").write_bytes(b"\xff")
    assert read_text(str(tmp_path / "b.txt")) == b"\xff"
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(ValueError, match=f"--calibrate={path} cannot be read .*name a text file"):
            read_text(str(path))
