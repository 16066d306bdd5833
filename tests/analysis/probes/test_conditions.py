"""What is inserted, how much of it, and where: ids joined, counted and told."""

import re

import numpy as np
import pytest

from mtp_jax.analysis.probes.conditions import (
    ANYWHERE,
    LENGTHS,
    MEANINGFUL,
    MEANINGLESS,
    NONE,
    POSITIONS,
    RANDOM,
    Condition,
    check_fits,
    fillers,
    insert,
)
from mtp_jax.data.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
ALL = [Condition(NONE), Condition(MEANINGLESS, "/"), Condition(MEANINGFUL, "he "), Condition(RANDOM)]
QUESTION, INSTRUCTION, BOS = np.arange(100, 106), np.arange(50, 54), 256


class Merging:
    """Bytes, but a run of up to four slashes is one id, as many a tokenizer has it; "~" and spaces have none."""

    def encode(self, text):
        pieces = re.findall(r"/{1,4}|[^/]", re.sub("[~ ]", "", text))
        return np.array([1000 + len(piece) if piece[0] == "/" else ord(piece) for piece in pieces], np.uint16)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("instruction", [INSTRUCTION, None])
def test_a_prompt_is_its_parts_and_nothing_else(position, instruction):
    plain = insert(QUESTION, [], bos=BOS, instruction=instruction, position=position, seed=3)
    before = [] if instruction is None else instruction.tolist()
    assert plain.ids.tolist() == [BOS, *before, *QUESTION] and plain.inserted == 0
    row = insert(QUESTION, [7, 8, 7], bos=BOS, instruction=instruction, position=position, seed=3)
    assert row.ids[row.filler_start:row.filler_end].tolist() == [7, 8, 7] and row.inserted == 3
    assert row.ids[row.kept].tolist() == plain.ids.tolist()
    assert row.ids[row.question].tolist() == QUESTION.tolist() and row.question_start == row.question[0]
    assert row.filler_start == plain.filler_start, "the place must not depend on what is inserted"
    where = {"before": 1, "between": 1 + len(before), "end": len(plain.ids)}
    assert row.filler_start == where.get(position, row.filler_start)


def test_random_places_lie_inside_and_differ():
    places = [insert(QUESTION, [7], bos=BOS, instruction=INSTRUCTION, position=ANYWHERE, seed=(0, number)).filler_start
              for number in range(200)]
    assert set(places) == set(range(2, 11))  # behind the first of the ten tokens, before the last
    assert insert([5], [7], bos=None, position=ANYWHERE).ids.tolist() == [5, 7]


def test_every_condition_counts_its_ids():
    for k in LENGTHS:
        none, slash, he, random = fillers(BYTES, ALL, k, seed=1)
        assert [len(filler.ids) for filler in (none, slash, he, random)] == [0, k, 3 * k, k]
        assert BYTES.decode(slash.ids) == "/" * k and BYTES.decode(he.ids) == "he " * k
        assert (slash.unit_tokens, he.unit_tokens) == (1, 3) and not slash.merged
    assert slash.told("/") == "70 x '/': 70 tokens" and he.told("he ") == "70 x 'he ': 210 tokens, 3 for each"
    assert random.told("") == "random sentences, cut to 70 tokens"


def test_k_may_count_tokens():
    _, slash, he, random = fillers(BYTES, ALL, 10, same_tokens=True)
    assert [len(filler.ids) for filler in (slash, he, random)] == [10, 10, 10]
    assert BYTES.decode(he.ids) == "he he he h" and not he.merged


def test_random_sentences_go_on_with_k_and_differ_with_the_seed():
    short, long = (fillers(BYTES, ALL, k, seed=(5, 1))[3].ids for k in (25, 70))
    assert long[:25].tolist() == short.tolist()
    others = [fillers(BYTES, ALL, 70, seed=(5, number))[3].ids.tolist() for number in range(20)]
    assert len({tuple(ids) for ids in others}) > 10
    own, = fillers(BYTES, [Condition(RANDOM)], 9, sentences=("ab",))
    assert BYTES.decode(own.ids) == "ab ab ab "


def test_a_merged_run_is_noticed_and_the_single_token_repeated():
    filler, = fillers(Merging(), [Condition(MEANINGLESS, "/")], 10)
    assert filler.ids.tolist() == [1001] * 10 and filler.merged
    assert (filler.run_tokens, filler.text_tokens) == (10, 3)
    assert "10 tokens" in filler.told("/") and "in 3, not 10" in filler.told("/")


@pytest.mark.parametrize("attempt, message", [
    (lambda: Condition("meaningles", "/"), 'Did you mean "meaningless"'),
    (lambda: Condition(MEANINGFUL, ""), "empty: give --meaningful=TEXT"),
    (lambda: fillers(BYTES, ALL, -1), "k=-1 must be at least 0"),
    (lambda: fillers(Merging(), [Condition(MEANINGLESS, "~")], 3), "'~' has no token"),
    (lambda: fillers(Merging(), [Condition(RANDOM)], 3, sentences=("~",)), "no token for the sentence"),
    (lambda: insert(QUESTION, [], bos=BOS, position="betwen"), 'Did you mean "between"'),
    (lambda: insert([], [1], bos=BOS), "question has no token"),
    (lambda: check_fits(insert(QUESTION, [7] * 5, bos=BOS), 13, more=2, name="gsm8k/3"),
     "gsm8k/3 needs 14 tokens, 5 of them inserted, and the window holds 13"),
])
def test_what_makes_no_sense_is_told(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt()


def test_what_just_fits_is_no_error():
    check_fits(insert(QUESTION, [7] * 5, bos=BOS), 14, more=2)
