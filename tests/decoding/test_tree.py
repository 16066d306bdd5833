"""Trees of drafts: what pruning promises, and the tables that decoding reads."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtp_jax.decoding.tree import Tree

EXAMPLE = Tree(parents=(-1, 0, 0, 1, 1, 2, 3), ranks=(0, 0, 1, 0, 1, 0, 0))
# Eighths make ties, and their products are exact.
SHARES = st.integers(0, 8).map(lambda eighths: eighths / 8)
ACCURACY = st.lists(st.lists(SHARES, min_size=1, max_size=4), max_size=4)


@st.composite
def trees(draw):
    """Draws any tree that is allowed, listed in any allowed order."""
    parents, ranks = [-1], [0]
    for node in range(1, draw(st.integers(1, 12))):
        parents.append(draw(st.integers(0, node - 1)))
        ranks.append(parents[:-1].count(parents[-1]))
    return Tree(tuple(parents), tuple(ranks))


def path_to(tree, node):
    """Returns the nodes from the root to `node`, by walking up."""
    path = [node]
    while path[0] != 0:
        path.insert(0, tree.parents[path[0]])
    return path


def paths_of_ranks(tree):
    return {tuple(tree.ranks[node] for node in path_to(tree, i)[1:]) for i in range(tree.size)}


def product_of(accuracy, ranks):
    return math.prod(accuracy[depth][rank] for depth, rank in enumerate(ranks))


def naive_prune(accuracy, nodes):
    """Returns the paths of the tree that grows by the best node that may be added, looked for afresh each time."""
    chosen = {()}
    while len(chosen) < nodes:
        allowed = [path for depth in range(1, len(accuracy) + 1)
                   for path in itertools.product(*(range(len(shares)) for shares in accuracy[:depth]))
                   if path not in chosen and path[:-1] in chosen
                   and (path[-1] == 0 or (*path[:-1], path[-1] - 1) in chosen) and product_of(accuracy, path) > 0]
        if not allowed:
            break
        chosen.add(min(allowed, key=lambda path: (-product_of(accuracy, path), len(path), path)))
    return chosen


def test_an_example_by_hand():
    assert EXAMPLE.size == 7 and EXAMPLE.depth == 3 and EXAMPLE.heads == 4 and not EXAMPLE.is_chain
    assert EXAMPLE.depths == (0, 1, 1, 2, 2, 2, 3)
    assert EXAMPLE.widths == (2, 2, 1)
    assert EXAMPLE.children == ((1, 2), (3, 4), (5,), (6,), (), (), ())
    assert EXAMPLE.paths[[0, 5, 6]].tolist() == [[0, 0, 0, 0], [0, 2, 5, 5], [0, 1, 3, 6]]
    assert np.flatnonzero(EXAMPLE.ancestors[6]).tolist() == [0, 1, 3, 6]


def test_pruning_by_hand():
    # Products: head 2 gives .6 and .3, head 3 .5 and .2 of each: .6, .3, .3 (after rank 0), .15, .12, .06.
    tree = Tree.prune([[0.6, 0.3], [0.5, 0.2]], 5)
    assert tree == Tree((-1, 0, 0, 1, 2), (0, 0, 1, 0, 0))


@given(trees())
def test_tables_are_those_of_a_walk(tree):
    for node in range(tree.size):
        path = path_to(tree, node)
        assert tree.depths[node] == len(path) - 1
        assert np.flatnonzero(tree.ancestors[node]).tolist() == path  # a parent precedes its children
        assert tree.paths[node].tolist() == path + [node] * (tree.depth + 1 - len(path))
        assert [tree.ranks[child] for child in tree.children[node]] == list(range(len(tree.children[node])))
        assert all(tree.parents[child] == node for child in tree.children[node])
    assert sum(map(len, tree.children)) == tree.size - 1 and tree.depth == max(tree.depths)
    at = [[tree.ranks[node] for node in range(tree.size) if tree.depths[node] == depth] for depth in range(tree.heads)]
    assert tree.widths == tuple(max(ranks) + 1 for ranks in at[1:])
    assert tree.is_chain == all(len(ranks) == 1 for ranks in at)


@given(ACCURACY, st.integers(1, 20))
def test_pruning_is_the_naive_greedy_choice(accuracy, nodes):
    tree = Tree.prune(accuracy, nodes)
    assert tree.size <= nodes
    assert paths_of_ranks(tree) == naive_prune(accuracy, nodes)
    listed = [(tree.depths[i], [tree.ranks[node] for node in path_to(tree, i)]) for i in range(tree.size)]
    assert listed == sorted(listed)  # one tree has one list, so that it compiles once


@given(ACCURACY.map(lambda heads: [sorted(shares, reverse=True) for shares in heads]), st.integers(1, 20))
def test_where_lower_ranks_are_better_no_tree_of_that_size_is_better(accuracy, nodes):
    every = [path for depth in range(len(accuracy) + 1)
             for path in itertools.product(*(range(len(shares)) for shares in accuracy[:depth]))]
    best = sorted((product_of(accuracy, path) for path in every), reverse=True)[:nodes]
    tree = Tree.prune(accuracy, nodes)
    assert sum(product_of(accuracy, path) for path in paths_of_ranks(tree)) == sum(best)
    assert tree.size == sum(product > 0 for product in best)


@given(st.lists(SHARES.filter(bool), max_size=6), st.integers(1, 8))
def test_one_candidate_a_head_makes_a_chain(shares, nodes):
    tree = Tree.prune([[share] for share in shares], nodes)
    chain = Tree.chain(min(nodes, len(shares) + 1))
    assert tree == chain and hash(tree) == hash(chain) and tree.is_chain
    assert chain.widths == (1,) * (chain.heads - 1) and (chain.ancestors == np.tri(chain.size, dtype=bool)).all()


def test_a_larger_budget_only_adds():
    accuracy = [[0.7, 0.15, 0.05], [0.5, 0.2, 0.1], [0.4, 0.2], [0.3]]
    sizes = [paths_of_ranks(Tree.prune(accuracy, nodes)) for nodes in range(1, 65)]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(sizes))
    assert len(sizes[-1]) == 1 + 3 + 9 + 18 + 18  # the whole product; there is no more to add


def test_a_list_is_taken_and_the_tree_stays_hashable():
    assert hash(Tree([-1, 0], [0, 0])) == hash(Tree.chain(2))


@pytest.mark.parametrize("make, message", [
    (lambda: Tree((), ()), "has 0 nodes"),
    (lambda: Tree((-1, 0), (0,)), "has 2 nodes and Tree.ranks 1"),
    (lambda: Tree((0, 0), (0, 0)), r"Tree.parents\[0\]=0.*the root is first"),
    (lambda: Tree((-1, 0), (1, 0)), r"Tree.ranks\[0\]=1.*the root is first"),
    (lambda: Tree((-1, 2, 0), (0, 0, 0)), r"Tree.parents\[1\]=2 must lie in \[0, 1\)"),
    (lambda: Tree((-1, -1), (0, 0)), r"Tree.parents\[1\]=-1 must lie"),
    (lambda: Tree((-1, 0, 0), (0, 0, 2)), r"Tree.ranks\[2\]=2 must be 1"),
    (lambda: Tree((-1, 0, 0), (0, 1, 0)), r"Tree.ranks\[1\]=1 must be 0"),
    (lambda: Tree.chain(0), "heads=0 must be at least 1"),
    (lambda: Tree.prune([[0.5]], 0), "nodes=0 must be at least 1"),
    (lambda: Tree.prune([[0.5, -0.1]], 4), r"accuracy\[0\]\[1\]=-0.1 must lie in \[0, 1\].*head 2"),
    (lambda: Tree.prune([[0.5], [math.nan]], 4), r"accuracy\[1\]\[0\]=nan must lie"),
    (lambda: Tree.prune([[1.5]], 4), r"accuracy\[0\]\[0\]=1.5 must lie"),
])
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
