"""The source of polynomial arithmetic: what is trained on, and what is kept for testing."""

import itertools
import pickle

import numpy as np
import pytest

from mtp_jax.config import DataConfig
from mtp_jax.data import open_corpus
from mtp_jax.data.reading import find_pieces
from mtp_jax.data.tasks import polynomial
from mtp_jax.data.tasks.polynomial import PIECE_EXAMPLES, PolynomialOptions
from tests.data.tasks.test_polynomial_ring import evaluate, string

PAPER = PolynomialOptions(examples=3 * PIECE_EXAMPLES - 100)


def questions(expressions):
    return [string(expressions, row) for row in range(len(expressions.lengths))]


def read(options, piece):
    return [document.read().decode() for document in polynomial.documents(options, piece)]


def test_examples_are_questions_and_their_values():
    read_texts = read(PAPER, 1)
    assert len(read_texts) == PIECE_EXAMPLES
    for text in read_texts[::40]:
        question, answer = text.split("=")
        value, operations = evaluate(question, PAPER.ring)
        assert answer == "".join(map(str, value)) and 1 <= operations <= 5
    counts = np.bincount(polynomial.training_expressions(PAPER, 1).operations, minlength=6)
    np.testing.assert_allclose(counts[1:] / PIECE_EXAMPLES, 1 / 5, atol=0.025)


def test_the_example_of_the_documentation():
    question, answer = next(line for line in polynomial.__doc__.splitlines() if "=" in line).strip().split("=")
    assert "".join(map(str, evaluate(question, PAPER.ring)[0])) == answer


def test_the_last_piece_ends_where_the_examples_do():
    assert len(read(PAPER, 2)) == PIECE_EXAMPLES - 100
    names = [document.name for piece in range(3) for document in polynomial.documents(PAPER, piece)]
    assert len(set(names)) == PAPER.examples and names == sorted(names)


def test_examples_depend_on_their_seed_and_place_alone():
    assert read(PAPER, 1) == read(PolynomialOptions(), 1)
    assert read(PAPER, 1) != read(PAPER, 0)
    assert read(PAPER, 1) != read(PolynomialOptions(seed=1), 1)


def test_pauses_stand_before_the_equals_sign_and_change_nothing_else():
    paused = read(PolynomialOptions(pause=5), 0)
    assert [text.replace(".....=", "=") for text in paused] == read(PAPER, 0)
    assert all(text.count(".") == 5 for text in paused)


def test_2000_unique_test_questions_a_size_of_which_none_is_trained_on():
    trained = set(itertools.chain.from_iterable(
        questions(polynomial.training_expressions(PolynomialOptions(max_operations=2), piece)) for piece in range(25)))
    for operations in range(1, 11):
        found = questions(polynomial.test_expressions(PAPER, operations, 2000))
        assert len(found) == len(set(found)) == 2000
        assert trained.isdisjoint(found)
        value, count = evaluate(found[-1], PAPER.ring)
        assert count == operations
    # So many negations of one operation were drawn that of 16,807 most others have been seen.
    negations = {question for question in trained if len(question) == 8}
    assert len(negations) > 8000
    tested = [question for question in questions(polynomial.test_expressions(PAPER, 1, 2000)) if len(question) == 8]
    assert len(tested) > 350


def test_a_small_ring_keeps_a_tenth_of_its_questions_for_testing():
    options = PolynomialOptions(prime=3, degree=2, max_operations=1, examples=10 * PIECE_EXAMPLES)
    everything = {question for piece in range(10)
                  for question in questions(polynomial.training_expressions(options, piece))}
    found = questions(polynomial.test_expressions(options, 1, 2000))
    assert len(found) == len(set(found)) and everything.isdisjoint(found)
    assert len(everything) + len(found) == 9 + 3 * 81  # nothing is in neither
    assert 10 <= len(found) <= 40


def test_fewer_test_questions_begin_the_same_list():
    assert questions(polynomial.test_expressions(PAPER, 3, 50)) == \
        questions(polynomial.test_expressions(PolynomialOptions(seed=4, pause=10), 3, 2000))[:50]


def test_it_is_a_source_as_others_are():
    config = DataConfig(source="polynomial", options="prime=5,degree=3,max_operations=2,examples=5000", seq_len=64)
    pieces = find_pieces(config)
    assert [piece.name for piece in pieces] == ["polynomial@000000000000", "polynomial@000000004096"]
    pickle.loads(pickle.dumps(pieces))
    corpus = open_corpus(config)
    assert corpus.num_documents == 5000 and "5,000 documents (4,750 to train on, 250 held out)" in corpus.summary()


@pytest.mark.parametrize("options, message", [
    ("prime=4", r"prime=4 must be one of \(2, 3, 5, 7\)"),
    ("degree=0", "degree=0 must be at least 1"),
    ("min_operations=3,max_operations=2", "max_operations=2 is below min_operations=3"),
    ("examples=1", "examples=1 must be at least 2"),
    ("pause=-1", "pause=-1 must be at least 0"),
    ("seed=4294967296", "seed=4294967296 must be below"),
    ("max_operation=2", "max_operations"),
])
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        find_pieces(DataConfig(source="polynomial", options=options))
