"""A report: the table of losses, and what decoding with the heads brings."""

import io
import re
import types

import numpy as np
import pytest

from mtp_jax.analysis import drafting, report
from mtp_jax.analysis.report import losses
from mtp_jax.decoding import terminal
from mtp_jax.terminal import wants_colour
from tests.decoding.models import trained_model
from tests.decoding.workdirs import write_workdir
from tests.small_model import make_config, make_params

LAST = {"step": 8, "split": "validation", "head_loss": [0.6931471805599453, None], "head_accuracy": [0.5, None],
        "head_agreement": [1.0, None]}


def test_the_last_validation_counts_and_resting_heads_are_told():
    first = {**LAST, "step": 4, "head_loss": [9.0, 9.0]}
    lines = losses([first, {**LAST, "validation_bits_per_byte": [1.0, None]}, {"split": "train", "step": 9}])
    assert lines[0] == "Held-out loss at step 8:" and "bits/byte" in lines[1]
    assert "1.000" in lines[2] and "50.0%" in lines[2] and "100.0%" in lines[2]
    assert "rests" in lines[3] and len(lines) == 4


def test_tokens_that_are_no_bytes_are_told_in_nats():
    lines = losses([{**LAST, "head_loss": [2.5, 3.5], "head_accuracy": [0.5, 0.25], "head_agreement": [1.0, 0.5],
                     "expected_accepted_length": 1.5}])
    assert "nats/token" in lines[1] and "2.500" in lines[2] and "3.500" in lines[3]
    assert "about 1.50 tokens a forward" in lines[4]


def test_a_run_without_validation_says_when_it_comes():
    assert "train.validate_every" in losses([{"split": "train", "step": 1}])[0]


WINDOW = 64
SOURCES = {"code": {"head_loss": [0.6931471805599453, None]}, "fairy tales": {"head_loss": [1.3862943611198906, 2.0]}}


def test_a_mixture_has_a_table_of_its_sources_in_the_same_unit():
    lines = losses([{**LAST, "validation_bits_per_byte": [1.0, None], "sources": SOURCES}])
    assert lines[4:] == ["", "By source, bits/byte:", "    source         head 1    head 2",
                         "    code            1.000     rests", "    fairy tales     2.000     2.885"]
    assert losses([{**LAST, "sources": SOURCES}])[5:8] == [
        "By source, nats/token:", "    source         head 1    head 2", "    code            0.693     rests"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a small byte model that was trained for seconds."""
    spec, params, _ = trained_model(dtype="float32")
    return write_workdir(tmp_path_factory.mktemp("trained") / "run", spec.config, {7: params}, seq_len=WINDOW)


@pytest.mark.slow
def test_drafting_is_measured_beside_head_1_and_a_sample_is_coloured(workdir):
    trial = drafting.run_trial(workdir, temperature=0.8)
    assert len(trial.alone) == len(trial.drafted) == len(drafting.CODE) and trial.prompt == "def __init__(self"
    for alone, drafted in zip(trial.alone, trial.drafted):
        assert alone.heads == 1 and drafted.heads == 4
        assert np.array_equal(alone.tokens[0], drafted.tokens[0]) and len(alone.tokens[0]) == WINDOW - 18
    coloured, plain = (drafting.report_lines(trial, temperature=0.8, coloured=on) for on in (True, False))
    text = trial.prompt + trial.sample.text[0]
    assert [line.removeprefix("    ") for line in plain[-len(text.split("\n")):]] == [
        line.rstrip() for line in terminal.harmless(text).split("\n")]
    assert "\x1b" not in "".join(plain) and "\x1b[38;5;33m" in "".join(coloured)
    unpainted = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in coloured if "drafted by" not in line]
    assert [line.rstrip() for line in unpainted] == plain
    page = "\n".join(plain)
    assert "4 prompts, 184 tokens" in page and "head 1 alone    1.00 tokens a forward" in page
    produced = sum(int(run.produced.sum()) for run in trial.drafted) / sum(int(run.forwards.sum())
                                                                           for run in trial.drafted)
    assert f"all 4 heads    {produced:5.2f} tokens a forward" in page and produced > 1
    assert "times as fast" in page and "accepted at draft 1, 2, 3: " in page
    assert "A forward with all heads runs 5 layers, with head 1 alone 2" in page
    assert "A sample at step 7 (temperature 0.8; " in page and "after 'def __init__(self':" in page


def test_a_model_of_one_head_and_a_short_window(tmp_path):
    model = make_config(num_heads=1, vocab_size=259, dtype="float32", param_dtype="float32")
    folder = write_workdir(tmp_path / "run", model, {3: make_params(model)}, seq_len=16)
    page = "\n".join(report.decoding(folder, 0.8, coloured=True))
    assert "    the one head    1.00 tokens a forward" in page and "drafted by" not in page
    assert "1 prompt, 9 tokens" in page and "A sample at step 3 (temperature 0.8), after 'class ':" in page


def test_other_corpora_begin_a_text(tmp_path):
    model = make_config(num_heads=1, vocab_size=259, dtype="float32", param_dtype="float32")
    folder = write_workdir(tmp_path / "run", model, {3: make_params(model)}, seq_len=16, source="files", path="x")
    assert drafting.fitting_prompts(drafting.load_model(folder), folder) == [("", [256])]


def fake(tokens, forwards, seconds, accepted, heads):
    return types.SimpleNamespace(produced=np.array([tokens]), forwards=np.array([forwards]), seconds=seconds,
                                 heads=heads, blocks=np.array([forwards - 1]), accepted=np.array([accepted]))


def test_the_speed_is_over_all_prompts_and_not_told_of_few_tokens():
    alone, drafted = [fake(90, 90, 1.0, [], 1), fake(10, 10, 1.0, [], 1)], [
        fake(90, 41, 0.5, [30, 10], 3), fake(10, 11, 0.5, [0, 0], 3)]
    lines = drafting.speed_lines(alone, drafted)
    assert lines[0] == "Decoding on this machine, greedily, 2 prompts, 100 tokens:"
    assert lines[1].endswith("  50 tokens/s") and lines[2].endswith("1.92 tokens a forward        100 tokens/s, 2.00 "
                                                                    "times as fast")
    assert lines[3] == "    accepted at draft 1, 2: 60%, 20%"
    few = drafting.speed_lines([fake(9, 9, 1.0, [], 1)], [fake(9, 1, 1.0, [0], 2)])
    assert "too few tokens to compare" in few[2] and len(few) == 3 and "1 prompt, 9 tokens" in few[0]


@pytest.mark.parametrize("kind, layers", [("parallel", (5, 3)), ("causal", (5, 3)), ("linear", None),
                                          ("anticausal", None), ("sequential", (7, 5)), ("medusa", None)])
def test_layers_are_told_where_further_heads_have_their_own(kind, layers):
    lines = drafting.layer_lines(make_config(head_kind=kind, num_heads=3, num_layers=4, extra_trunk_layers=1))
    assert lines == [] if layers is None else f"runs {layers[0]} layers, with head 1 alone {layers[1]}" in lines[0]


def test_heads_that_cannot_decode_leave_the_rest_of_the_report(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise NotImplementedError("Mute lacks `first` and `further`, which decoding needs.")

    monkeypatch.setattr(drafting, "run_trial", refuse)
    assert report.decoding(tmp_path, 0.8, coloured=False) == [
        "No sample: Mute lacks `first` and `further`, which decoding needs."]


@pytest.mark.parametrize("variables, tty, want", [
    ({}, True, True), ({}, False, False), ({"NO_COLOR": "1"}, True, False), ({"FORCE_COLOR": "1"}, False, True),
    ({"TERM": "dumb"}, True, False)])
def test_colours_are_for_terminals(monkeypatch, variables, tty, want):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: tty
    assert wants_colour(stream) is want
