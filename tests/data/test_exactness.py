"""The same batches, bit for bit, however a run is cut: at any step, over workers and hosts, from one source or several.

The documents are the hard ones: as long as a row (with BOS and EOS), as two rows, and one token more or less.
"""

import contextlib
import dataclasses
from concurrent import futures

import numpy as np
import pytest

from mtp_jax.config import DataConfig, MixtureConfig
from mtp_jax.data import open_corpus

STEPS, B, L = 50, 4, 32
SIZES = {"exact": [L] * 30, "edges": [L - 1, L, L + 1, 2 * L, 2 * L - 1, 2 * L + 1] * 6, "random": None}
NAMES = ["exact", "edges", "mixture"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{name: folder of documents that with BOS and EOS have the tokens that SIZES says}."""
    rng, found = np.random.default_rng(0), {}
    for name, sizes in SIZES.items():
        found[name] = tmp_path_factory.mktemp(name)
        for i, size in enumerate(rng.integers(3, 5 * L, 20) if sizes is None else sizes):
            (found[name] / f"{i}.txt").write_bytes(bytes(rng.integers(32, 127, size - 2).astype(np.uint8)))
    return found


@pytest.fixture(scope="module")
def corpora(folders):
    """A corpus whose rows are documents, one whose rows end anywhere, and a mixture of three unequal ones."""
    shared = dict(batch_size=B, seq_len=L, seed=3, validation_batches=3)
    mixture = tuple(MixtureConfig(name, weight=weight, path=str(folders[name]))
                    for name, weight in (("edges", 0.55), ("exact", 0.32), ("random", 0.13)))
    return {"mixture": open_corpus(DataConfig(**shared, mixture=mixture)),
            **{name: open_corpus(DataConfig(source="files", path=str(folders[name]), **shared)) for name in NAMES[:2]}}


@pytest.fixture(scope="module")
def unbroken(corpora):
    """{name: the batches that one host without workers reads in one go}."""
    return {name: read(corpus, STEPS + 3)[0] for name, corpus in corpora.items()}


def shares_of(hosts):
    """Returns the rows that each host reads: those of a host lie apart; hosts past the fourth read what others do."""
    return [range(host, B, min(hosts, B)) if host < B else range(host % B, host % B + 1) for host in range(hosts)]


def joined(shares):
    """Returns the batch of which these are the hosts' shares; two hosts that read a row must read the same."""
    batch = {}
    for rows, share in zip(shares_of(len(shares)), shares, strict=True):
        for name, values in share.items():
            assert len(values) == len(rows)
            for row, value in zip(rows, values):
                np.testing.assert_array_equal(batch.setdefault((name, row), value), value)
    return {name: np.stack([batch[name, row] for row in range(B)]) for name in shares[0]}


def assert_equal(got, want):
    assert got.keys() == want.keys() == {"tokens", "segments", "positions"}
    for name in want:
        assert got[name].dtype == np.int32
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def read(corpus, count, workers=0, hosts=1, next_row=0):
    """Returns the next `count` batches over all hosts, and the place after them, the same on every host."""
    corpus = dataclasses.replace(corpus, config=dataclasses.replace(corpus.config, num_workers=workers))
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(corpus.train_batches(rows, next_row)) for rows in shares_of(hosts)]
        batches = [joined([next(reader) for reader in readers]) for _ in range(count)]
        states = [reader.state() for reader in readers]
    assert states == [states[0]] * hosts
    return batches, states[0]


def assert_continues(corpus, unbroken, step, count=2, **setting):
    """Checks that a reader of this setting that starts after `step` steps reads what comes next, then stands there."""
    batches, state = read(corpus, count, next_row=B * step, **setting)
    assert state == {"next_row": B * (step + count)}
    for got, want in zip(batches, unbroken[step:step + count], strict=True):
        assert_equal(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_hard_documents_are_among_the_rows_and_an_epoch_ends_within_the_steps(corpora, unbroken, name):
    corpus = corpora[name]
    rows = {key: np.concatenate([batch[key] for batch in unbroken[name]]) for key in unbroken[name][0]}
    bos, eos = corpus.tokenizer.bos_id, corpus.tokenizer.eos_id
    whole = (rows["tokens"][:, 0] == bos) & (rows["tokens"][:, -1] == eos) & (rows["segments"] == 1).all(axis=1)
    assert whole.sum() > 5  # rows that are one document, from BOS to EOS
    assert whole.all() == (name == "exact") == (rows["segments"].max() == 1)
    assert len(np.unique(rows["tokens"], axis=0)) < len(rows["tokens"])  # some came a second time
    if name == "mixture":
        assert len({len(part.rows["train"]) for part in corpus.parts.values()}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_resume_at_every_one_of_fifty_steps(corpora, unbroken, name):
    with corpora[name].train_batches() as batches:
        for step in range(STEPS):
            assert_continues(corpora[name], unbroken[name], batches.state()["next_row"] // B)
            assert_equal(next(batches), unbroken[name][step])


@pytest.mark.parametrize("name, workers, step", [("edges", 1, 32), ("mixture", 2, 25)])
def test_workers_go_on_where_none_stopped(corpora, unbroken, name, workers, step):
    assert_continues(corpora[name], unbroken[name], step, 3, workers=workers)


@pytest.mark.slow  # fifty starts of worker processes
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["edges", "mixture"])
def test_resume_at_every_one_of_fifty_steps_with_workers(corpora, unbroken, name, workers):
    assert_continues(corpora[name], unbroken[name], 0, STEPS, workers=workers)
    with futures.ThreadPoolExecutor(4) as starts:  # a start is mostly imports: some at a time keep the cores busy
        for checked in [starts.submit(assert_continues, corpora[name], unbroken[name], step, workers=workers)
                        for step in range(STEPS)]:
            checked.result()


@pytest.mark.parametrize("start", [0, 17])
@pytest.mark.parametrize("hosts", [1, 2, 4, 6])
@pytest.mark.parametrize("name", NAMES)
def test_joined_shares_of_hosts_equal_the_batch_of_one(corpora, unbroken, name, hosts, start):
    assert_continues(corpora[name], unbroken[name], start, 20, hosts=hosts)
    shares = [corpora[name].validation_batches(rows) for rows in shares_of(hosts)]
    for part, whole in corpora[name].validation_batches().items():
        assert len(whole) > 0 and {len(share[part]) for share in shares} == {len(whole)}
        for step, want in enumerate(whole):
            assert_equal(joined([share[part][step] for share in shares]), want)


SETTINGS = [(workers, hosts) if workers == 0 else pytest.param(workers, hosts, marks=pytest.mark.slow)
            for workers in (0, 1, 2) for hosts in (1, 2, 4) if hosts > 1 or workers == 0]  # the others are above


@pytest.mark.parametrize("name", ["edges", "mixture"])
@pytest.mark.parametrize("workers, hosts", SETTINGS)
def test_every_setting_saves_and_restores_the_same_number(corpora, unbroken, name, workers, hosts):
    """The number is all that is saved: so every change of setting between save and restore is exact, too."""
    for step, count in ((0, 5), (5, 4)):
        assert_continues(corpora[name], unbroken[name], step, count, workers=workers, hosts=hosts)


@pytest.mark.parametrize("before, after", [((0, 2), (0, 4)), ((0, 4), (0, 1)), ((0, 1), (1, 2)), ((2, 1), (0, 4))])
def test_changing_workers_or_hosts_between_save_and_restore_changes_nothing(corpora, unbroken, before, after):
    batches, state = read(corpora["mixture"], 5, *before)
    more, end = read(corpora["mixture"], 4, *after, next_row=state["next_row"])
    assert end == {"next_row": B * 9}
    for got, want in zip(batches + more, unbroken["mixture"][:9], strict=True):
        assert_equal(got, want)
