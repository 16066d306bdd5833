"""How texts become rows: against the definitions, and against a tokenizer whose tokens cross the seam."""

import dataclasses
import runpy
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.evaluation.loglikelihood import encode_pair, encode_text, windows


class Pairs(ByteTokenizer):
    """Bytes, but " a" is one token: 300."""

    def encode(self, text):
        ids, data = [], text.encode()
        while data:
            long = data.startswith(b" a")
            ids.append(300 if long else data[0])
            data = data[2 if long else 1:]
        return np.array(ids, np.uint16)


def test_spaces_at_the_seam_belong_to_the_continuation():
    for context, continuation in (("x", " ab"), ("x ", "ab")):
        first, rest = encode_pair(Pairs(), context, continuation)
        assert first.tolist() == [256, ord("x")] and rest.tolist() == [300, ord("b")]


def test_without_a_context_there_is_bos():
    for context in ("", " \n"):
        first, rest = encode_pair(ByteTokenizer(), context, "né")
        assert first.tolist() == [256] and rest.tolist() == list((context + "né").encode())
    assert encode_text(ByteTokenizer(), "né").tolist() == [256, *"né".encode()]
    assert encode_text(ByteTokenizer(), "").tolist() == [256]


@dataclasses.dataclass
class Seen:
    times: int = 0
    context: int = 0


@given(st.integers(1, 70), st.integers(1, 20), st.data())
def test_each_token_is_scored_once_with_context(tokens, window, data):
    stride = data.draw(st.integers(1, window))
    seen = [Seen() for _ in range(tokens)]
    for begin, end, first in windows(tokens, window, stride):
        assert 0 <= begin < first < end <= tokens and end - begin <= window + 1
        for place in range(first, end):
            seen[place] = Seen(seen[place].times + 1, place - begin)
    assert [one.times for one in seen] == [0] + [1] * (tokens - 1)
    for place, one in enumerate(seen):
        assert one.context >= min(place, window + 1 - stride), "as much context as the stride leaves, or the whole"


@pytest.mark.parametrize("name, error", [("__main__", SystemExit), ("adapter", ImportError)])
def test_without_lm_eval_the_adapter_says_what_to_install(name, error, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(error, match=r"The adapter needs lm-evaluation-harness .*pip install 'mtp_jax\[lm_eval\]'"):
        runpy.run_module("mtp_jax.evaluation.lm_eval_adapter", run_name=name)
