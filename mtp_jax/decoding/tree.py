"""Trees of drafted tokens: which head's candidates one forward verifies, and along which paths."""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tree:
    """A block of tokens that one forward verifies.

    Node 0, the root, is the last token that is settled. A node at depth d holds a candidate of head d + 1 for the token
    d places after the root; its children hold candidates of the next head. All nodes at one depth share the candidates
    of one head, so a node is told by its parent and by its rank among them. A chain is a tree with one branch.

    Hashable, and fixed at compile time.

    Attributes:
      parents: the parent of each node; -1 for the root, which is first. A parent precedes its children.
      ranks: which candidate of its head a node holds, 0 the best; 0 for the root. Siblings come in the order 0, 1, ..
        and leave no rank out.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(int(parent) for parent in self.parents))  # a list is not hashable
        object.__setattr__(self, "ranks", tuple(int(rank) for rank in self.ranks))
        if len(self.parents) != len(self.ranks) or not self.parents:
            raise ValueError(f"Tree.parents has {len(self.parents)} nodes and Tree.ranks {len(self.ranks)}: give one "
                             "of each a node, the root first.")
        if self.parents[0] != -1 or self.ranks[0] != 0:
            raise ValueError(f"Tree.parents[0]={self.parents[0]}, Tree.ranks[0]={self.ranks[0]}: the root is first, "
                             "with parent -1 and rank 0.")
        siblings = [0] * self.size
        for node in range(1, self.size):
            parent = self.parents[node]
            if not 0 <= parent < node:
                raise ValueError(f"Tree.parents[{node}]={parent} must lie in [0, {node}): list a parent before its "
                                 "children.")
            if self.ranks[node] != siblings[parent]:
                raise ValueError(f"Tree.ranks[{node}]={self.ranks[node]} must be {siblings[parent]}: number the "
                                 f"children of node {parent} 0, 1, .. in the order in which they are listed.")
            siblings[parent] += 1

    @classmethod
    def chain(cls, heads: int) -> Tree:
        """Returns the tree of one branch: the best candidate of each of the heads 2..`heads`.

        Args:
          heads: how many heads are in use, head 1 counted; 1 drafts nothing.

        Raises:
          ValueError: `heads` is below 1.
        """
        if heads < 1:
            raise ValueError(f"heads={heads} must be at least 1: head 1 always runs.")
        return cls(tuple(range(-1, heads - 1)), (0,) * heads)

    @classmethod
    def prune(cls, accuracy: Sequence[Sequence[float]], nodes: int) -> Tree:
        """Returns the tree of at most `nodes` nodes that is expected to have the most drafts accepted.

        A path is taken to be right as often as the product of the shares of its nodes; the node with the highest
        product is added until the tree is full or every node left has a product of 0. Of equal products the smaller
        depth, then the lower ranks come first. The nodes are listed by depth, then by the ranks on their path.

        Args:
          accuracy: accuracy[d - 1][r] is the share of positions at which the candidate of rank r of head d + 1 was
            what head 1 then said.
          nodes: of the tree, the root counted.

        Raises:
          ValueError: `nodes` is below 1, or a share does not lie in [0, 1].
        """
        if nodes < 1:
            raise ValueError(f"nodes={nodes} must be at least 1: the root counts.")
        for depth, shares in enumerate(accuracy, 1):
            for rank, share in enumerate(shares):
                if not 0 <= share <= 1:
                    raise ValueError(f"accuracy[{depth - 1}][{rank}]={share} must lie in [0, 1]: it is the share of "
                                     f"positions at which head {depth + 1} was right with that rank.")
        chosen: list[tuple[int, ...]] = []  # a node is told by the ranks on its path
        waiting: list[tuple[float, int, tuple[int, ...], float]] = [(-1.0, 0, (), 1.0)]  # last: its parent's product
        while waiting and len(chosen) < nodes:
            product, depth, path, above = heapq.heappop(waiting)
            chosen.append(path)
            # A rank joins only after the one before it, since siblings leave no rank out.
            options = [(depth, (*path[:-1], path[-1] + 1), above)] if path else []
            options += [(depth + 1, (*path, 0), -product)] if depth < len(accuracy) else []
            for deep, option, base in options:
                shares = accuracy[deep - 1]
                if option[-1] < len(shares) and base * shares[option[-1]] > 0:
                    heapq.heappush(waiting, (-base * shares[option[-1]], deep, option, base))
        chosen.sort(key=lambda path: (len(path), path))
        index = {path: node for node, path in enumerate(chosen)}
        return cls((-1, *(index[path[:-1]] for path in chosen[1:])), (0, *(path[-1] for path in chosen[1:])))

    @property
    def size(self) -> int:
        """The number of nodes, Q."""
        return len(self.parents)

    @functools.cached_property
    def depths(self) -> tuple[int, ...]:
        """The depth of each node; 0 for the root."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @functools.cached_property
    def depth(self) -> int:
        """The depth of the deepest node: how many drafts can be accepted."""
        return max(self.depths)

    @property
    def heads(self) -> int:
        """How many heads are in use, head 1 counted."""
        return self.depth + 1

    @functools.cached_property
    def widths(self) -> tuple[int, ...]:
        """How many candidates each of the heads 2, 3, .. has to offer."""
        return tuple(max(rank for rank, at in zip(self.ranks, self.depths) if at == depth) + 1
                     for depth in range(1, self.depth + 1))

    @functools.cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The children of each node, by rank."""
        return tuple(tuple(child for child, parent in enumerate(self.parents) if parent == node)
                     for node in range(self.size))

    @functools.cached_property
    def ancestors(self) -> np.ndarray:
        """[Q, Q] bool: whether node j is node i or one of its ancestors, so that node i attends to it."""
        ancestors = np.eye(self.size, dtype=bool)
        for node, parent in enumerate(self.parents[1:], 1):
            ancestors[node] |= ancestors[parent]
        ancestors.setflags(write=False)  # shared by all who ask
        return ancestors

    @functools.cached_property
    def paths(self) -> np.ndarray:
        """[Q, depth + 1] int32: the node at each depth of the path to node i; past its end, node i again."""
        paths = np.repeat(np.arange(self.size, dtype=np.int32)[:, None], self.depth + 1, axis=1)
        for node, parent in enumerate(self.parents[1:], 1):
            paths[node, :self.depths[node]] = paths[parent, :self.depths[node]]
        paths.setflags(write=False)
        return paths

    @property
    def is_chain(self) -> bool:
        """Whether the tree has one branch."""
        return self.depth == self.size - 1
