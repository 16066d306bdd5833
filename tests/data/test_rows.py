"""The row index against a naive re-implementation."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.data import Rows, build_rows

BOS, EOS, PAD = 256, 257, 258


def naive_rows(documents, seq_len):
    """Returns the rows token by token, as lists."""
    stream = [(token, d) for d, document in enumerate(documents) for token in [BOS, *document, EOS]]
    rows = []
    for start in range(0, len(stream), seq_len):
        tokens, segments, positions, previous = [], [], [], None
        for token, document in stream[start:start + seq_len]:
            same = document == previous
            segments.append((segments[-1] if segments else 0) + (not same))
            positions.append(positions[-1] + 1 if same else 0)
            tokens.append(token)
            previous = document
        rest = seq_len - len(tokens)
        rows.append({"tokens": tokens + [PAD] * rest, "segments": segments + [0] * rest,
                     "positions": positions + [0] * rest})
    return rows


def build(documents, seq_len):
    arrays = [np.array(document, np.uint16) for document in documents]
    return build_rows(arrays, bos_id=BOS, eos_id=EOS, pad_id=PAD, seq_len=seq_len, dtype=np.uint16)


@given(st.integers(1, 12).flatmap(lambda seq_len: st.tuples(
    st.just(seq_len),
    # Lengths around the row's: empty, one token, exactly a row with BOS and EOS, exactly a row without, longer.
    st.lists(st.one_of(st.sampled_from([0, 1, max(seq_len - 2, 0), seq_len]), st.integers(0, 30)).flatmap(
        lambda n: st.lists(st.integers(0, 255), min_size=n, max_size=n)), min_size=1, max_size=8))))
def test_rows_equal_the_naive_ones(case):
    seq_len, documents = case
    rows, expected = build(documents, seq_len), naive_rows(documents, seq_len)
    assert len(rows) == len(expected)
    for row, want in enumerate(expected):
        got = rows[row]
        assert {name: values.tolist() for name, values in got.items()} == want
        assert all(values.dtype == np.int32 and values.shape == (seq_len,) for values in got.values())


def test_a_document_of_exactly_one_row():
    rows = build([[1, 2], [3, 4]], 4)
    assert len(rows) == 2
    assert rows[1]["tokens"].tolist() == [BOS, 3, 4, EOS]
    assert rows[1]["segments"].tolist() == [1, 1, 1, 1] and rows[1]["positions"].tolist() == [0, 1, 2, 3]


def test_the_last_row_is_padded_and_rows_beyond_are_padding():
    rows = build([[1], [2]], 5)
    assert rows[1] == {"tokens": pytest.approx([EOS, PAD, PAD, PAD, PAD]), "segments": pytest.approx([1, 0, 0, 0, 0]),
                       "positions": pytest.approx([0] * 5)}
    assert rows[2]["tokens"].tolist() == [PAD] * 5 and rows[2]["segments"].tolist() == [0] * 5


def test_memory_mapped_streams_and_one_token_documents(tmp_path):
    np.arange(6, dtype=np.uint16).tofile(tmp_path / "tokens")
    rows = Rows(np.memmap(tmp_path / "tokens", np.uint16), np.array([0, 1, 2, 6]), seq_len=4, pad_id=9)
    assert rows[0]["tokens"].tolist() == [0, 1, 2, 3] and rows[0]["segments"].tolist() == [1, 2, 3, 3]
    assert rows[1]["tokens"].tolist() == [4, 5, 9, 9] and rows[1]["segments"].tolist() == [1, 1, 0, 0]


def test_rows_survive_pickling():  # as they go to worker processes
    rows = build([[1, 2, 3], [4]], 4)
    assert pickle.loads(pickle.dumps(rows))[1]["tokens"].tolist() == rows[1]["tokens"].tolist()


@pytest.mark.parametrize("bounds", [[0], [0, 2], [1, 3], [0, 2, 2, 3]])
def test_bounds_that_do_not_fit_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds must"):
        Rows(np.zeros(3, np.uint16), np.array(bounds, np.int64), seq_len=2, pad_id=0)
