"""What a batch gives: each row as if alone, ended where it must, told as it grows."""

import numpy as np
import pytest

from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import generate
from tests.decoding.checks import BUSHY, LENGTHS, ROWS, byte_model, compare, greedy_model, ragged, tokens_of
from tests.decoding.models import WINDOW

BLOCKS = [{"heads": 1}, {"heads": 4}, {"tree": BUSHY[4]}]
NAMES = ["plain", "chain", "tree"]


def batch(prompt, others=0):
    """Returns the prompt in a batch of the size whose programs are compiled."""
    return [prompt, *ragged(others, 259, LENGTHS[1:])]


def free(prompt, block, others=0):
    """Returns (new ids, heads that drafted them) without stop tokens."""
    result = generate(byte_model()[1], batch(prompt, others), max_new_tokens=WINDOW, stop=[], **block)
    return result.tokens[0].tolist(), result.drafted_by[0].tolist()


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_a_stop_token_ends_a_row_wherever_it_stands(block, x64):
    entry, model = byte_model()
    prompt = [256, *b"return "]
    tokens, by = free(prompt, block)
    for place, token in enumerate(tokens):
        if token in tokens[:place]:
            continue
        result = generate(model, batch(prompt), max_new_tokens=WINDOW, stop=[token], **block)
        assert (tokens_of(result)[0], result.drafted_by[0].tolist()) == (tokens[:place], by[:place])
        assert result.finished[0] == "stop" and result.produced[0] == place + 1
    places = [i for i, token in enumerate(tokens) if token not in tokens[:i]]
    assert places[0] == 0 and len(places) > 6
    if block != {"heads": 1}:
        assert {by[i] for i in places} > {1, 2}  # head 1's own, and drafts
    compare(entry, model, batch(prompt), block, stop=(tokens[0],))


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_every_limit_cuts_the_same_text(block, x64):
    """So too in the middle of a block, and where the stop token would come just behind the limit or at it."""
    entry, model = byte_model()
    prompt = [256, *b"for "]
    tokens, by = free(prompt, block)
    for limit in (*range(1, 16), len(tokens)):
        result = generate(model, batch(prompt), max_new_tokens=limit, stop=[], **block)
        assert (tokens_of(result)[0], result.drafted_by[0].tolist()) == (tokens[:limit], by[:limit])
        assert result.finished[0] == "length" and result.forwards[0] <= limit
        if limit < 2:
            assert result.forwards.tolist() == [1] * ROWS and result.blocks.tolist() == [0] * ROWS
    place = next(i for i in range(4, len(tokens)) if tokens[i] not in tokens[:i])
    for limit, finished in ((place, "length"), (place + 1, "stop")):
        result = generate(model, batch(prompt), max_new_tokens=limit, stop=[tokens[place]], **block)
        assert (tokens_of(result)[0], result.finished[0]) == (tokens[:place], finished)
    full = generate(model, batch(prompt), max_new_tokens=WINDOW, stop=[], **block)
    assert full.finished == ["window"] * ROWS
    assert [n + len(p) for n, p in zip(full.lengths, batch(prompt))] == [WINDOW] * ROWS


@pytest.mark.parametrize("block", BLOCKS[1:], ids=NAMES[1:])
def test_a_row_does_not_depend_on_its_neighbours(block, x64):
    prompt = [256, *b"class x "]
    assert free(prompt, block, others=1) == free(prompt, block, others=2)
    entry, model = byte_model()
    turned = generate(model, batch(prompt)[::-1], max_new_tokens=WINDOW, stop=[], **block)
    assert (turned.tokens[-1].tolist(), turned.drafted_by[-1].tolist()) == free(prompt, block)


@pytest.mark.slow
@pytest.mark.parametrize("rows, block", [(1, {"heads": 4}), (32, {"heads": 4})])
def test_other_sizes_of_batch(rows, block, x64, greedy_only):
    entry, model = greedy_model("trained")
    for seed in range(2):
        lengths = [1 + (5 * seed + 7 * i) % (WINDOW - 1) for i in range(rows)]
        compare(entry, model, ragged(seed, 259, lengths), block)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 13, 32])
def test_still_other_sizes_of_batch(rows, x64, greedy_only):
    entry, model = greedy_model("trained")
    lengths = [1 + 7 * i % (WINDOW - 1) for i in range(rows)]
    for block in BLOCKS:
        compare(entry, model, ragged(rows, 259, lengths), block)


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_draws_of_a_row_depend_on_seed_and_row_alone(block, x64):
    model, prompt = byte_model()[1], [256, *b"import "]

    def draw(others, seed=1, max_new_tokens=20):
        return tokens_of(generate(model, batch(prompt, others), max_new_tokens=max_new_tokens, seed=seed, stop=[],
                                  temperature=1.0, **block))

    first = draw(0)
    assert first == draw(0) and first[0] == draw(3)[0]
    assert draw(0, max_new_tokens=9)[0] == first[0][:9]
    assert first[0] != draw(0, seed=2)[0]
    same = tokens_of(generate(model, [prompt] * ROWS, max_new_tokens=20, temperature=1.0, seed=1, stop=[], **block))
    assert same[0] == first[0] and len({tuple(row) for row in same}) == ROWS


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_filters_that_leave_one_token_draw_what_greedy_takes(block, x64):
    model = byte_model()[1]
    prompts = ragged(5, 259, LENGTHS)
    greedy = generate(model, prompts, max_new_tokens=20, stop=[], **block)
    for options in (dict(top_k=1), dict(top_p=1e-6), dict(min_p=0.999999), dict(temperature=1e-3)):
        drawn = generate(model, prompts, max_new_tokens=20, stop=[], **{"temperature": 1.5, **options}, **block)
        assert tokens_of(drawn) == tokens_of(greedy)


def test_text_and_ids_are_the_same_prompt(x64):
    entry, model = byte_model()
    texts = ["return x", "é", "a", "in", "for x", "zz", "none", "def"]
    ids = [[256, *text.encode()] for text in texts]
    from_text = generate(model, texts, max_new_tokens=12, heads=4)
    from_ids = generate(model, [np.asarray(row, np.int64) for row in ids], max_new_tokens=12, heads=4)
    assert tokens_of(from_text) == tokens_of(from_ids) and from_text.text == from_ids.text
    assert from_text.text == [ByteTokenizer().decode(row) for row in from_text.tokens]
    compare(entry, model, ids, {"heads": 4}, max_new_tokens=12, stop=(257,))


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
@pytest.mark.parametrize("every", [1, 3, 100])
def test_tokens_are_told_as_they_are_accepted(block, every, x64):
    model, calls = byte_model()[1], []
    prompts = ragged(6, 259, LENGTHS)
    stop = [tokens_of(generate(model, prompts, max_new_tokens=WINDOW, stop=[], **block))[1][9]]
    whole = generate(model, prompts, max_new_tokens=WINDOW, stop=stop, **block)
    told = generate(model, prompts, max_new_tokens=WINDOW, stop=stop, stream_every=every,
                    on_tokens=lambda row, new, by: calls.append((row, new.tolist(), by.tolist())), **block)
    assert "stop" in whole.finished and tokens_of(told) == tokens_of(whole)
    assert told.forwards.tolist() == whole.forwards.tolist()
    for row in range(ROWS):
        mine = [(new, by) for r, new, by in calls if r == row]
        assert sum((new for new, _ in mine), []) == whole.tokens[row].tolist()
        assert sum((by for _, by in mine), []) == whole.drafted_by[row].tolist()
        assert len(mine) <= -(-int(whole.blocks[row]) // every) + 1
        assert every > 1 or all(by.count(1) <= 1 for _, by in mine)  # a block at a time
    assert all(new for _, new, _ in calls)


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
def test_a_row_that_has_enough_is_not_gone_on_with(block, x64):
    model, prompts = byte_model()[1], ragged(6, 259, LENGTHS)
    whole = generate(model, prompts, max_new_tokens=WINDOW, stop=[], **block)
    taken = [0] * ROWS

    def enough(row, new, by):
        taken[row] += len(new)
        return row == 1 and taken[row] >= 5

    told = generate(model, prompts, max_new_tokens=WINDOW, stop=[], stream_every=1, on_tokens=enough, **block)
    assert told.finished[1] == "enough" and 5 <= told.lengths[1] < 5 + model.heads + 1 < whole.lengths[1]
    for row in range(ROWS):
        assert told.tokens[row].tolist() == whole.tokens[row][:told.lengths[row]].tolist()
        assert row == 1 or (told.finished[row], told.lengths[row]) == (whole.finished[row], whole.lengths[row])


def test_figures_of_a_generation(x64):
    result = generate(byte_model()[1], ragged(6, 259, LENGTHS), max_new_tokens=WINDOW, heads=4)
    stats = result.stats()
    assert stats["tokens"] == sum(result.lengths) + result.finished.count("stop") == result.produced.sum()
    assert stats["tokens_per_forward"] == result.tokens_per_forward == stats["tokens"] / result.forwards.sum() > 1
    assert stats["acceptance"] == result.acceptance and len(result.acceptance) == 3
    assert sorted(result.acceptance, reverse=True) == result.acceptance
    drafted = sum(int(np.sum(by > 1)) for by in result.drafted_by)
    assert drafted <= result.accepted.sum() <= drafted + result.finished.count("stop")
    assert stats["seconds"] > 0 and stats["tokens_per_second"] == stats["tokens"] / result.seconds


@pytest.mark.parametrize("prompts, options, message", [
    ([[1]], dict(heads=5), "heads=5.*1..4"),
    ([[1]], dict(heads=0), "heads=0.*1..4"),
    ([[1]], dict(heads=2, tree=BUSHY[4]), "heads=2.*tree"),
    ([[1], []], {}, "Prompt 2 is empty"),
    ([""], {}, "Prompt 1 is empty"),
    ([], {}, "at least one"),
    ("text", {}, "list"),
    ([[1] * WINDOW], {}, f"Prompt 1 has {WINDOW} tokens.*window.*cut"),
    (["x" * WINDOW], {}, f"Prompt 1 has {WINDOW + 1} tokens"),
    ([[1, 259]], {}, "Prompt 1.*259.*0 to 258"),
    ([[-1]], {}, "Prompt 1.*-1"),
    ([[1.5]], {}, "Prompt 1.*ids"),
    ([[1]], dict(max_new_tokens=0), "max_new_tokens=0"),
    ([[1]], dict(temperature=-1.0), "temperature=-1.0"),
    ([[1]], dict(top_p=0.0), "top_p=0"),
    ([[1]], dict(stop=[259]), "stop=.*259"),
    ([[1]], dict(stop=5), "stop=5.*list"),
    ([[1]], dict(stop="x"), "stop='x'.*list"),
    ([[1]], dict(max_new_tokens=2.5), "max_new_tokens=2.5.*whole"),
    ([[1]], dict(seed=1.5), "seed=1.5.*whole"),
    ([[1]], dict(stream_every=0), "stream_every=0"),
])
def test_bad_requests(prompts, options, message, x64):
    with pytest.raises(ValueError, match=message):
        generate(byte_model()[1], prompts, **{"max_new_tokens": 4, **options})
