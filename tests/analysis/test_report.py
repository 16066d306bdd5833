"""The table of a report: bits for bytes, nats else, heads that rest, runs without a validation; and the sample."""

import json
import types

from etils import epath

from mtp_jax.analysis import report
from mtp_jax.analysis.report import losses

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


def test_a_sample_keeps_the_space_that_its_tokenizer_drops_at_the_start_of_a_text(tmp_path, monkeypatch):
    from sentencepiece import SentencePieceTrainer

    from mtp_jax import checkpoints, config, decoding
    from mtp_jax.data import build_tokenizer

    SentencePieceTrainer.train(sentence_iterator=iter(["def __init__(self and more", "more and self"] * 20),
                               model_prefix=str(tmp_path / "sp"), vocab_size=40, minloglevel=2,
                               hard_vocab_limit=False)
    fields = {"data": {"tokenizer": str(tmp_path / "sp.model"), "source": "stdlib"}, "model": {"vocab_size": 40}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    tokenizer = build_tokenizer(config.DataConfig(tokenizer=str(tmp_path / "sp.model")))
    new = tokenizer.encode("more").tolist()
    prompts = []

    def sample(spec, params, prompt, **kwargs):
        prompts.append([int(index) for index in prompt])
        return new

    monkeypatch.setattr(checkpoints, "load_params", lambda workdir: types.SimpleNamespace(step=7, params={}))
    monkeypatch.setattr(decoding, "sample", sample)
    assert tokenizer.decode(new) == "more"
    assert report.continue_prompt(epath.Path(tmp_path), 0.8) == (7, "def __init__(self", " more")
    assert prompts == [[tokenizer.bos_id, *tokenizer.encode("def __init__(self").tolist()]]


SOURCES = {"code": {"head_loss": [0.6931471805599453, None]}, "fairy tales": {"head_loss": [1.3862943611198906, 2.0]}}


def test_a_mixture_has_a_table_of_its_sources_in_the_same_unit():
    lines = losses([{**LAST, "validation_bits_per_byte": [1.0, None], "sources": SOURCES}])
    assert lines[4:] == ["", "By source, bits/byte:", "    source         head 1    head 2",
                         "    code            1.000     rests", "    fairy tales     2.000     2.885"]
    assert losses([{**LAST, "sources": SOURCES}])[5:8] == [
        "By source, nats/token:", "    source         head 1    head 2", "    code            0.693     rests"]
