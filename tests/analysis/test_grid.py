"""The grid of a sweep: what is read, that quoting loses nothing, and what is said of texts that are no grid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.analysis.grid import Axis, combinations, parse_grid, split, unquote

FIELDS = st.from_regex(r"[a-z_]{1,8}(\.[a-z_][a-z0-9_]{0,8}){0,2}", fullmatch=True)
VALUES = st.text(max_size=12).filter(lambda text: not ("'" in text and '"' in text))


def quoted(value):
    """Returns a value as a person who trusts nothing would write it."""
    mark = '"' if "'" in value else "'"
    return f"{mark}{value}{mark}"


def written(axes):
    """Returns the text of a grid."""
    return ";".join(f"config.{axis.field}={','.join(map(quoted, axis.values))}" for axis in axes)


@given(st.lists(st.tuples(FIELDS, st.lists(VALUES, min_size=1, max_size=4, unique=True)), min_size=1, max_size=3,
                unique_by=lambda pair: pair[0]))
def test_what_is_quoted_comes_back(pairs):
    axes = tuple(Axis(field, tuple(values)) for field, values in pairs)
    assert parse_grid([written(axes)]) == axes
    assert parse_grid([written([axis]) for axis in axes]) == axes
    cells = combinations(axes)
    size = 1
    for axis in axes:
        size *= len(axis.values)
    assert len(cells) == size == len({tuple(cell.items()) for cell in cells})
    assert all(list(cell) == [axis.field for axis in axes] for cell in cells)


@given(st.lists(st.from_regex(r"[\w.:+-]{1,8}", fullmatch=True), min_size=1, max_size=5, unique=True))
def test_plain_values_need_no_quotes(values):
    assert parse_grid([f"config.a.b={','.join(values)}"]) == (Axis("a.b", tuple(values)),)


@pytest.mark.parametrize("text, values", [
    ("1,2,4", ("1", "2", "4")),
    (" 1 , 2 ", ("1", "2")),
    ("(1,0.5),(1,1)", ("(1,0.5)", "(1,1)")),
    ("'data:2,fsdp:1',\"data:1,fsdp:2\"", ("data:2,fsdp:1", "data:1,fsdp:2")),
    ("[{'name': 'a, b', 'weight': 0.5}],()", ("[{'name': 'a, b', 'weight': 0.5}]", "()")),
    ("'',x", ("", "x")),
    ("a=b,c==d", ("a=b", "c==d")),
    ("('fresh',)", ("('fresh',)",)),
    ("\"it's\"", ("it's",)),
])
def test_commas_inside_quotes_and_brackets_part_nothing(text, values):
    assert parse_grid([f"config.model.x={text}"]) == (Axis("model.x", values),)


def test_the_last_axis_changes_fastest():
    axes = parse_grid(["config.model.num_heads=1,2; config.train.seed=0,1", "config.size=1m"])
    assert [tuple(cell.values()) for cell in combinations(axes)] == [
        ("1", "0", "1m"), ("1", "1", "1m"), ("2", "0", "1m"), ("2", "1", "1m")]


@pytest.mark.parametrize("texts, message", [
    ([], "--grid is empty"),
    ([""], "is no axis"),
    (["config.a=1;"], "is no axis"),
    (["config.model.num_heads"], "is no axis"),
    (["model.num_heads=1,2"], r"Did you mean config\.model\.num_heads\?"),
    (["config.=1"], "is no axis"),
    (["config.a="], "config.a has no values"),
    (["config.a=1,,2"], "nothing between two commas"),
    (["config.a=1,"], "nothing between two commas"),
    (["config.a=1,2,1"], "has the value 1 twice"),
    (["config.a='1',1"], "has the value 1 twice"),
    (["config.a=1;config.a=2"], "two axes of config.a"),
    (["config.a=1", "config.a=2"], "two axes of config.a"),
    (["config.a='1,2"], "' is missing"),
    (["config.a=(1,2"], r"'\)' closes|\) is missing"),
    (["config.a=1),2"], r"'\)' closes no bracket"),
    (["config.a=(1,2],3"], r"'\]' closes no bracket"),
])
def test_what_is_no_grid_is_told(texts, message):
    with pytest.raises(ValueError, match=message):
        parse_grid(texts)


def test_pieces_and_quotes_by_hand():
    assert split("a;'b;c';(d;e)", ";") == ["a", "'b;c'", "(d;e)"]
    assert [unquote(text) for text in ("'a'", '"a"', "'a'b'", "'", "a", "''", "'a\"")] == [
        "a", "a", "'a'b'", "'", "a", "", "'a\""]
