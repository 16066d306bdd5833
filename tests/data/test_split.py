"""Order and split by name and seed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.data.split import derived_seed, shuffled_names, split_groups

NAMES = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), min_size=2, unique=True)


@given(NAMES, st.floats(0.001, 0.999), st.integers(-2**40, 2**40))
def test_split_covers_all_and_never_overlaps(names, fraction, seed):
    train, validation = split_groups(names, fraction=fraction, seed=seed)
    assert train | validation == set(names) and not train & validation
    assert train and validation
    assert len(validation) == min(max(round(fraction * len(names)), 1), len(names) - 1)


@given(NAMES, st.randoms())
def test_split_does_not_depend_on_listing_order(names, random):
    shuffled = list(names)
    random.shuffle(shuffled)
    assert split_groups(names, fraction=0.3, seed=1) == split_groups(shuffled, fraction=0.3, seed=1)


def test_split_and_order_depend_on_the_seed():
    names = [f"file{i}" for i in range(100)]
    splits = {split_groups(names, fraction=0.1, seed=seed)[1] for seed in range(20)}
    assert len(splits) == 20
    orders = {tuple(shuffled_names(names, seed=seed, purpose="documents")) for seed in range(20)}
    assert len(orders) == 20 and all(sorted(order) == sorted(names) for order in orders)


def test_order_is_pinned():
    names = ["a", "b", "c", "d", "e"]  # a changed order would change every run's data without a word
    assert shuffled_names(names, seed=0, purpose="documents") == ["c", "d", "a", "e", "b"]
    assert derived_seed(0, "rows") == 1188502245


def test_one_group_is_an_error():
    with pytest.raises(ValueError, match="two files or more, got 1"):
        split_groups(["a", "a"], fraction=0.5, seed=0)
