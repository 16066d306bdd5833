"""Star graphs: each text is a star with one right path, nothing in its order tells which, held-out ones stay out."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtp_jax.config import DataConfig
from mtp_jax.data.corpus import open_corpus
from mtp_jax.data.sources import find
from mtp_jax.data.tasks.star_graph import (
    HELD_OUT,
    PIECE,
    StarGraph,
    held_out_examples,
    is_held_out,
    make_texts,
)


def parse(options, text):
    """Returns edges, centre, goal and path, as names, of an example."""
    question, answer = text.split("=")
    graph, ends = question.split("/")
    width = options.width

    def names(part):
        return [part[at:at + width] for at in range(0, len(part), width)]

    return [tuple(names(edge)) for edge in graph.split("|")], *names(ends), names(answer)


def examples(options, stream="train", number=0):
    """Returns the parsed examples of a piece."""
    return [parse(options, text.tobytes().decode()) for text in make_texts(options, stream, number)]


def arms_of(edges, centre):
    """Walks from the centre; returns the arms, each as a tuple."""
    after = {}
    for start, end in edges:
        after.setdefault(start, []).append(end)
    arms = []
    for node in after[centre]:
        arm = [node]
        while arm[-1] in after:
            assert len(after[arm[-1]]) == 1  # only the centre branches
            arm.append(after[arm[-1]][0])
        arms.append(tuple(arm))
    return arms


def check(options, example):
    """Fails unless an example is a star, and its answer the one path from centre to goal."""
    edges, centre, goal, path = example
    arms = arms_of(edges, centre)
    names = {name for edge in edges for name in edge}
    assert len(edges) == len(set(edges)) == options.edges
    assert len(names) == options.graph_nodes and all(len(name) == options.width for name in names)
    assert len(arms) == options.arms and {len(arm) for arm in arms} == {options.length - 1}
    assert len({name for arm in arms for name in arm}) == options.edges  # arms share no node
    assert [arm for arm in arms if arm[-1] == goal] == [tuple(path[1:])] and path[0] == centre


@settings(max_examples=25, deadline=None)
@given(arms=st.integers(2, 5), length=st.integers(2, 5), spare=st.integers(0, 60), seed=st.integers(0, 2**31),
       stream=st.sampled_from(["train", "validation", "test"]))
def test_every_text_is_a_star_and_its_answer_the_only_path(arms, length, spare, seed, stream):
    nodes = max(1 + arms * (length - 1) + spare, 15)
    options = StarGraph(arms=arms, length=length, nodes=nodes, held_out=100, seed=seed)
    options.validate()
    for example in examples(options, stream)[:60]:
        check(options, example)


def test_an_example_by_hand():
    check(StarGraph(arms=2, length=3, nodes=62), parse(StarGraph(nodes=62), "c1|4a|42|2f/4f=42f".replace("c1", "a1")))
    options = StarGraph(arms=2, length=3, nodes=63)
    assert (options.width, options.tokens) == (2, 4 * 5 + 5 + 6 + 2)
    assert options.graphs == math.perm(63, 5) // 2


def test_neither_arm_nor_place_nor_name_tells_the_answer():
    options = StarGraph(arms=3, length=3, nodes=20)
    found = [example for number in range(4) for example in examples(options, number=number)]
    first_arm, hard_edge, goal_edge, names = np.zeros(3), np.zeros(6), np.zeros(6), np.zeros(62)
    for edges, centre, goal, path in found:
        first_arm[[end for start, end in edges if start == centre].index(path[1])] += 1
        hard_edge[edges.index((centre, path[1]))] += 1
        goal_edge[edges.index((path[1], goal))] += 1
        names["0123456789ABCDEFGHIJ".index(path[1])] += 1
    for counts in (first_arm, hard_edge, goal_edge, names[:20]):
        expected = len(found) / len(counts)
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert chi_square < 2 * len(counts) + 20, counts  # p < 1e-4 for 3 to 20 places


def test_held_out_graphs_are_in_no_training_example_under_any_seed():
    options = StarGraph(arms=2, length=3, nodes=9, held_out=2000)  # 7,560 graphs: training sees all it may

    def graphs(found):
        return {(centre, frozenset(arms_of(edges, centre))) for edges, centre, _, _ in found}

    train = graphs([example for seed in (0, 1) for number in range(6)
                    for example in examples(dataclasses.replace(options, seed=seed), number=number)])
    test = graphs([parse(options, prompt + answer) for prompt, answer in held_out_examples(options)])
    validation = graphs(examples(options, "validation"))
    assert not train & test and not train & validation
    assert len(train) > 0.85 * options.graphs and 0.5 < len(test | validation) * HELD_OUT / options.graphs < 1.5


def test_a_graph_is_held_out_by_its_arms_in_any_order():
    options = StarGraph(arms=3, length=3, nodes=30)
    graphs = np.stack([np.random.default_rng(i).permutation(30)[:7] for i in range(4000)])
    held = is_held_out(options, graphs)
    assert (is_held_out(options, graphs[:, [0, 5, 6, 1, 2, 3, 4]]) == held).all()
    assert (is_held_out(options, graphs[:, [0, 2, 1, 3, 4, 5, 6]]) != held).any()
    assert 200 < held.sum() < 300


def test_the_same_options_make_the_same_texts_and_streams_differ():
    options = StarGraph(nodes=20)
    first = make_texts(options, "train", 3)
    assert (make_texts(options, "train", 3) == first).all()
    assert len(np.unique(first, axis=0)) == PIECE
    for other in (make_texts(options, "train", 4), make_texts(dataclasses.replace(options, seed=1), "train", 3)):
        assert len(np.unique(np.concatenate([first, other]), axis=0)) == 2 * PIECE
    assert first[0].tobytes() == make_texts(options, "train", 3)[0].tobytes()


def test_test_examples_all_differ_and_a_few_begin_many():
    options = StarGraph(arms=2, length=3, nodes=9, held_out=6000)
    many = held_out_examples(options)
    assert len(set(many)) == len(many) == 6000
    assert held_out_examples(dataclasses.replace(options, held_out=50, seed=3)) == many[:50]  # whatever the seed


def test_a_corpus_of_one_example_a_row():
    config = DataConfig(source="star_graph", options="arms=2,length=3,nodes=12,samples=5000,held_out=300", seq_len=20,
                        validation_path="validation")
    corpus = open_corpus(config)
    rows = corpus.parts["star_graph"].rows
    assert (len(rows["train"]), len(rows["validation"])) == (5000, 300)
    options = StarGraph(arms=2, length=3, nodes=12)
    held = set()
    for name, many in (("train", 20), ("validation", 300)):
        for number in range(many):
            row = rows[name][number]
            assert row["tokens"][0] == 256 and row["tokens"][-1] == 257 and (row["segments"] == 1).all()
            text = bytes(row["tokens"][1:-1].astype(np.uint8)).decode()
            check(options, parse(options, text))
            held.add((name, text))
    validation = {text.tobytes().decode() for text in make_texts(options, "validation", 0)[:300]}
    assert {text for name, text in held if name == "validation"} == validation


def test_pieces_travel_and_their_documents_are_numbered():
    config = DataConfig(source="star_graph", options="samples=5000")
    pieces = pickle.loads(pickle.dumps(list(find(config))))
    documents = [document for piece in pieces for document in piece.documents()]
    assert [document.name for document in documents[:2]] == ["star_graph@000000000", "star_graph@000000001"]
    assert len({document.name for document in documents}) == 5000
    assert sum(piece.size for piece in pieces) == sum(len(document.read()) for document in documents)


@pytest.mark.parametrize("options, told", [
    ("arms=1", "arms=1"), ("length=1", "length=1"), ("nodes=6", "nodes=6 must lie between 7"),
    ("nodes=4000", "and 3,844"), ("arms=2,length=2,nodes=5", "too few"), ("samples=0", "samples=0"), ("arm=3", "arms"),
])
def test_options_that_make_no_sense(options, told):
    with pytest.raises(ValueError, match=told):
        find(DataConfig(source="star_graph", options=options))


def test_an_unknown_stream_is_named():
    with pytest.raises(ValueError, match="data.path='tset'.*test"):
        find(DataConfig(source="star_graph", path="tset"))
