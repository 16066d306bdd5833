"""Mixtures: exact shares at any place, epochs that end where they should, orders of their own."""

import dataclasses
import itertools
import pickle
import sys
import time

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.config import DataConfig, MixtureConfig
from mtp_jax.data import TrainBatches, build_rows, open_corpus
from mtp_jax.data.mixture import Interleaving, Mixture

SHARES = st.lists(st.integers(1, 10**12), min_size=1, max_size=5).map(tuple)


def rows_of(count, token=1):
    """Returns `count` rows that hold the token `token` alone."""
    return build_rows([np.empty(0, np.int64)] * count, bos_id=token, eos_id=token, pad_id=0, seq_len=2)


def mixture(*parts):
    """Returns a mixture of (rows of an epoch, weight, epochs); rows of source i hold the token i + 1."""
    names = "abcdef"[:len(parts)]
    return Mixture.create(
        {name: rows_of(rows, token=i + 1) for i, (name, (rows, _, _)) in enumerate(zip(names, parts))},
        [MixtureConfig(name, weight=weight, epochs=epochs) for name, (_, weight, epochs) in zip(names, parts)])


@given(SHARES, st.integers(0, 10**18))
def test_each_source_gives_its_rows_one_by_one_in_its_share(shares, start):
    deal = Interleaving(shares)
    before = deal.counts(start)
    for row in range(start, start + 30):
        source, index = deal[row]
        assert index == before[source]
        before[source] += 1
        assert deal.counts(row + 1) == before and sum(before) == row + 1
        for share, count in zip(shares, before):
            assert abs(count - (row + 1) * share / sum(shares)) < len(shares) or row > 2**50  # a float is too coarse
            assert abs(count * sum(shares) - (row + 1) * share) < len(shares) * sum(shares)


@given(SHARES, st.integers(0, 1000))
def test_whole_rounds_give_exactly_the_shares(shares, rounds):
    assert Interleaving(shares).counts(rounds * sum(shares)) == [rounds * share for share in shares]


def test_where_grain_mixes_exactly_it_is_the_same_order():
    sources = [grain.MapDataset.range(1000 * i, 1000 * i + 1000).repeat() for i in range(3)]
    ours = grain.MapDataset.select_from_datasets(sources, Interleaving((6, 3, 1)))
    theirs = grain.MapDataset.mix(sources, [0.6, 0.3, 0.1])
    assert [ours[i] for i in range(5000)] == [theirs[i] for i in range(5000)]
    assert len(ours) == len(theirs) == sys.maxsize


def test_an_interleaving_goes_to_worker_processes():
    assert pickle.loads(pickle.dumps(Interleaving((2, 1)))) == Interleaving((2, 1))


@pytest.mark.parametrize("parts, shares", [
    ([(10, 0.7, None), (99, 0.2, None), (3, 0.1, None)], (7, 2, 1)),
    ([(10, 0.9987, None), (10, 0.0013, None)], (9987, 13)),
    ([(10, 1e-6, None), (10, 0.999999, None)], (1, 999999)),
    ([(10, 0.101, None), (10, 0.1019, None), (10, 0.7971, None)], (1010, 1019, 7971)),  # Grain's mix: 100, 100, 789
    ([(10, 0.3333333, None), (10, 0.6666666, None)], (3333333, 6666666)),  # sums to 1 to within what is allowed
    ([(10, None, None), (30, None, None)], (1, 3)),
    ([(10, None, 4.0), (30, None, None)], (4, 3)),
    ([(10, None, 0.5), (30, None, 1.5)], (1, 9)),
    ([(100, None, 0.29), (29, None, None)], (1, 1)),  # 0.29 * 100 is 28.999... in binary
    ([(10, 1.0, None)], (1,)),
])
def test_shares_are_the_weights_or_follow_rows_and_epochs(parts, shares):
    expected = mixture(*parts).shares
    assert [share * expected[0] for share in shares] == [shares[0] * share for share in expected]


def test_a_weight_of_one_in_a_million_is_one_row_in_a_million():
    counts = mixture((10, 0.999999, None), (10, 1e-6, None)).counts(10**9)
    assert counts == {"a": 10**9 - 1000, "b": 1000}


@pytest.mark.parametrize("parts", [
    [(10, 0.5, 2.0), (1000, 0.5, None)], [(10, 0.9, 2.5), (30, 0.1, 0.5)], [(7, 0.3, 1.0), (7, 0.3, 3.0), (7, 0.4, 2)],
    [(10, None, 2.0), (30, None, None)], [(10, None, 0.7), (30, None, 3.3)], [(10, 1.0, 3.0)], [(1, 0.001, 1.0),
                                                                                         (1, 0.999, None)]])
def test_a_mixture_ends_before_the_first_source_gives_too_much(parts):
    mixed = mixture(*parts)
    limits = {name: int(rows * epochs + 1e-9) for name, (rows, _, epochs) in zip("abc", parts) if epochs}
    assert mixed.limits == limits
    expected = next(rows for rows in itertools.count()
                    if any(mixed.counts(rows + 1)[name] > limit for name, limit in limits.items()))
    assert mixed.length == expected
    if all(weight is None and epochs for _, weight, epochs in parts):
        assert mixed.counts(expected) == limits  # shares that follow the epochs use them up at once


def test_a_mixture_without_limits_is_endless():
    assert mixture((10, 0.5, None), (10, 0.5, None)).length is None
    assert Mixture.create({"a": rows_of(3)}).length is None


def test_epochs_that_leave_no_row_are_refused():
    with pytest.raises(ValueError, match="data.mixture of 'b': epochs=0.05 of its 10 training rows are less than one"):
        mixture((10, 0.5, None), (10, 0.5, 0.05))


def tokens(batches, count):
    with batches:
        return np.concatenate([next(batches)["tokens"][:, 0] for _ in range(count)])


def test_batches_hold_the_shares_and_limited_sources_give_no_row_too_often():
    rows = {name: build_rows([np.array([10 * i + j]) for j in range(4)], bos_id=90, eos_id=91, pad_id=0, seq_len=3)
            for i, name in enumerate("ab")}
    mixed = Mixture.create(rows, [MixtureConfig("a", weight=0.75, epochs=2.5), MixtureConfig("b", weight=0.25)])
    assert mixed.length == 13
    with TrainBatches(mixed, batch_size=4, seed=0) as batches:
        taken = np.concatenate([next(batches)["tokens"][:, 1] for _ in range(3)])
        with pytest.raises(ValueError, match=r"data.mixture of 'a': epochs=2.5 of its 4 training rows last for 3 steps "
                                             r"of data.batch_size=4: raise its epochs"):
            next(batches)  # not StopIteration, which a for loop would take for the end of the run
        assert batches.state() == {"next_row": 12}
    assert np.sum(taken < 10) == 9 and np.sum(taken >= 10) == 3
    assert sorted(np.unique(taken[taken < 10], return_counts=True)[1]) == [2, 2, 2, 3]
    for share in ([0, 1], [2, 3]):
        with TrainBatches(mixed, batch_size=4, seed=0, share=share, next_row=8) as batches:
            next(batches)
            with pytest.raises(ValueError, match="last for 3 steps"):
                next(batches)


def test_a_source_has_its_own_order_and_a_single_one_that_of_old_runs():
    rows = build_rows([np.array([j]) for j in range(8)], bos_id=90, eos_id=91, pad_id=0, seq_len=3)

    def order(names, count=16):
        part = [MixtureConfig(name, weight=1 / len(names)) for name in names]
        with TrainBatches(Mixture.create({name: rows for name in names}, part), batch_size=1, seed=3) as batches:
            return [int(next(batches)["tokens"][0, 1]) for _ in range(count)]

    golden = [4, 1, 6, 7, 2, 3, 5, 0, 5, 6, 7, 2, 3, 1, 0, 4]
    with TrainBatches(rows, batch_size=1, seed=3) as batches:
        assert [int(next(batches)["tokens"][0, 1]) for _ in range(16)] == golden
    assert order(["a"]) == order(["b"]) == golden  # under any name
    both = order(["a", "b"], 32)
    assert both[:16] == [7, 2, 6, 1, 4, 6, 2, 4, 1, 5, 0, 0, 5, 3, 3, 7]  # what stopped runs go on with
    assert sorted(both[0::2][:8]) == sorted(both[1::2][:8]) == list(range(8))
    assert len({tuple(both[0::2]), tuple(both[1::2]), tuple(golden)}) == 3


def test_resuming_far_ahead_in_a_mixture_is_immediate():
    mixed = mixture((1000, 0.6, None), (50, 0.3, None), (3, 0.1, None))
    tokens(TrainBatches(mixed, batch_size=10, seed=0), 1)  # imports
    start = time.perf_counter()
    counts = np.bincount(tokens(TrainBatches(mixed, batch_size=10, seed=0, next_row=4 * 10**15), 10))
    assert time.perf_counter() - start < 5  # reading up to there would take years
    assert list(counts) == [0, 60, 30, 10]


@pytest.fixture
def mixed_config(write_folder, text_files):
    """Two folders, the first three times as often as the second, which lasts two epochs."""
    other = {f"{name}.b": content[::-1] for name, content in text_files.items()}
    return DataConfig(batch_size=4, seq_len=32, seed=3, mixture=(
        MixtureConfig("letters", source="files", path=write_folder(text_files), weight=0.75, validation_fraction=0.25),
        MixtureConfig("mirror", source="files", path=write_folder(other, "other"), weight=0.25, epochs=2.0)))


def test_a_corpus_of_two_sources(mixed_config):
    corpus = open_corpus(mixed_config)
    assert list(corpus.parts) == ["letters", "mirror"]
    assert list(corpus.validation_batches()) == ["letters", "mirror"]
    single = {part.name: open_corpus(mixed_config.parts[part.name]) for part in mixed_config.mixture}
    for name, alone in single.items():
        (part,) = alone.parts.values()
        assert corpus.parts[name].hash == part.hash == alone.hash
        (held_out,) = alone.validation_batches().values()
        np.testing.assert_array_equal(corpus.validation_batches()[name][0]["tokens"], held_out[0]["tokens"])
    assert corpus.hash not in {part.hash for part in corpus.parts.values()}
    swapped = dataclasses.replace(mixed_config, mixture=mixed_config.mixture[::-1])
    assert open_corpus(swapped).hash != corpus.hash
    assert corpus.num_rows("train") == sum(len(part.rows["train"]) for part in corpus.parts.values())


def test_a_run_as_long_as_the_epochs_is_let_through(mixed_config):
    corpus = open_corpus(mixed_config)
    steps = corpus.mixture.length // 4
    assert steps == 2 * len(corpus.parts["mirror"].rows["train"])  # every fourth row
    corpus.check_steps(steps)
    with pytest.raises(ValueError, match=rf"train.num_steps={steps + 1} needs more rows .* of 'mirror': epochs=2 of "
                                         rf"its {steps // 2} training rows last for {steps} steps"):
        corpus.check_steps(steps + 1)
    with corpus.train_batches(next_row=4 * (steps - 1)) as batches:
        next(batches)
        with pytest.raises(ValueError, match=f"last for {steps} steps"):
            next(batches)
