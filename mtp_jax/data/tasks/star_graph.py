"""Path finding on star graphs (Bachmann and Nagarajan 2024, "The pitfalls of next-token prediction").

G(d, l) has a centre and d arms. As in the published generator, l counts the nodes of a path, centre and goal included:
an arm has l - 1 nodes of its own, and the graph 1 + d (l - 1) nodes and d (l - 1) edges. Their names are drawn without
repetition from `nodes` names. One arm's end is the goal. An example of G(2, 3) is

    c1|4a|42|2f/4f=42f

that is all edges, away from the centre and in random order, then centre and goal, then the path from one to the other.
It has the tokens of the published form "12,1|4,10|4,2|2,15/4,15=4,2,15", whose commas its tokenizer drops. The second
node of the path is the hard one: what follows it is found by going along the edges, but it only by going back from the
goal.

A name is one character of 0-9A-Za-z, for more than 62 names two of them ("00" to "zz", 3,844 names at most).

A graph is held out by a hash of its arms, whatever its goal and the order of its edges: one graph in sixteen is in no
training example of any run, and what models are measured by is made of these alone. `data.path` says which stream a
corpus is: "" is the training stream, "validation" and "test" are two of held-out graphs, so that
`data.validation_path="validation"` holds out by graphs, where `data.validation_fraction` would hold out by example.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from mtp_jax.config import DataConfig, check_choice, check_positive, check_seed
from mtp_jax.data.sources.base import Document, Piece, register_source
from mtp_jax.data.split import derived_seed
from mtp_jax.data.tasks.options import read_options

STREAMS = ("train", "validation", "test")
PIECE = 4096  # examples made in one go
HELD_OUT = 16  # one graph in so many is held out
_ALPHABET = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", np.uint8)
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


@dataclasses.dataclass(frozen=True)
class StarGraph:
    """Settings of the source "star_graph"."""

    arms: int = 3  # d, paths that leave the centre; guessing one is right with probability 1/d
    length: int = 3  # l, nodes of a path, centre and goal included
    nodes: int = 100  # names that the nodes are drawn from
    samples: int = 300_000  # training examples
    held_out: int = 2_000  # examples of the streams "validation" and "test", each; those of the test all differ
    seed: int = 0  # of the training examples; those held out are the same for every seed

    def validate(self) -> None:
        where = "data.options of data.source='star_graph': "
        check_positive(where + "options", self, "samples", "held_out")
        check_positive(where + "options", self, "arms", "length", minimum=2)
        check_seed(where + "options", self)
        if not self.graph_nodes <= self.nodes <= len(_ALPHABET) ** 2:
            raise ValueError(f"{where}nodes={self.nodes} must lie between {self.graph_nodes}, the nodes of one graph "
                             f"of arms={self.arms} and length={self.length}, and {len(_ALPHABET) ** 2:,}.")
        texts = self.graphs * self.arms * math.factorial(self.edges) // HELD_OUT
        if self.graphs < 50 * HELD_OUT or texts < 3 * self.held_out:
            raise ValueError(f"{where}nodes={self.nodes} names make {self.graphs:,} graphs of arms={self.arms} and "
                             f"length={self.length}: too few to hold {self.held_out:,} different examples out; raise "
                             "nodes.")

    @property
    def graph_nodes(self) -> int:
        """Nodes of one graph."""
        return 1 + self.edges

    @property
    def edges(self) -> int:
        """Edges of one graph."""
        return self.arms * (self.length - 1)

    @property
    def graphs(self) -> int:
        """Graphs there are, goal and order of edges left aside."""
        return math.perm(self.nodes, self.graph_nodes) // math.factorial(self.arms)

    @property
    def width(self) -> int:
        """Characters of a node's name."""
        return 1 if self.nodes <= len(_ALPHABET) else 2

    @property
    def prompt_length(self) -> int:
        """Characters of a prompt, which ends in "="."""
        return self.edges * (2 * self.width + 1) + 2 * self.width + 1

    @property
    def path_length(self) -> int:
        """Characters of an answer."""
        return self.length * self.width

    @property
    def tokens(self) -> int:
        """Tokens of an example with the byte tokenizer, BOS and EOS included: rows of as many hold one each."""
        return self.prompt_length + self.path_length + 2


@register_source("star_graph", takes_options=True)
def star_graph(config: DataConfig) -> Sequence[Piece]:
    """Lists the pieces of one stream, `config.path`, each of 4,096 examples and one document an example.

    Args:
      config: of one source.

    Raises:
      ValueError: there is no such stream, or the options make no sense.
    """
    options = read_options(StarGraph, config.options, "star_graph")
    stream = config.path or "train"
    check_choice("data.path", stream, STREAMS)
    total = options.samples if stream == "train" else options.held_out
    return [Piece(f"star_graph@{stream}:{number:06d}", min(PIECE, total - number * PIECE) * (options.tokens - 2),
                  functools.partial(_documents, options, stream, number)) for number in range(-(-total // PIECE))]


def _documents(options: StarGraph, stream: str, number: int) -> Iterator[Document]:
    total = options.samples if stream == "train" else options.held_out
    texts = make_texts(options, stream, number)[:total - number * PIECE]
    for place, text in enumerate(texts, start=number * PIECE):
        name = f"star_graph@{'' if stream == 'train' else stream + ':'}{place:09d}"
        yield Document(name, name, text.tobytes)


def held_out_examples(options: StarGraph, stream: str = "test") -> list[tuple[str, str]]:
    """Returns (prompt with its "=", answer) of every example of a stream of held-out graphs, in their order.

    Args:
      options: what examples are made of.
      stream: "test" or "validation".

    Raises:
      ValueError: it is another stream.
    """
    check_choice("stream", stream, STREAMS[1:])
    pieces = [make_texts(options, stream, number) for number in range(-(-options.held_out // PIECE))]
    lines = [text.tobytes().decode() for text in np.concatenate(pieces)[:options.held_out]]
    return [(line[:options.prompt_length], line[options.prompt_length:]) for line in lines]


def make_texts(options: StarGraph, stream: str, number: int) -> np.ndarray:
    """Returns the texts [4096, characters] of one piece of a stream, uint8.

    The test stream repeats no text; it is made from its start, so that a piece of it costs what all before it do.

    Args:
      options: what examples are made of.
      stream: one of STREAMS.
      number: of the piece, from 0.
    """
    if stream != "test":
        return _draw(options, stream, number)
    pieces = _draw(options, stream, 0)
    drawn = 1
    while True:
        _, first = np.unique(pieces, axis=0, return_index=True)
        different = pieces[np.sort(first)]
        if len(different) >= min((number + 1) * PIECE, options.held_out):
            return different[number * PIECE:(number + 1) * PIECE]
        pieces = np.concatenate([different, _draw(options, stream, drawn)])
        drawn += 1


def _draw(options: StarGraph, stream: str, number: int) -> np.ndarray:
    """Returns the texts [4096, characters] of one draw, decided by the options, the stream and the number alone."""
    seed = options.seed if stream == "train" else 0
    rng = np.random.default_rng([derived_seed(seed, f"star_graph {stream}"), number])
    found: list[np.ndarray] = []
    while sum(map(len, found)) < PIECE:
        graphs = _draw_graphs(options, PIECE + PIECE // 8, rng)
        found.append(graphs[is_held_out(options, graphs) == (stream != "train")])
    return _write(options, np.concatenate(found)[:PIECE], rng)


def _draw_graphs(options: StarGraph, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns node numbers [count, 1 + d (l - 1)]: the centre, then arm after arm outwards; the first ends in the goal.

    The shuffle of Fisher and Yates over all rows at once, stopped after the nodes that are needed.
    """
    names = np.tile(np.arange(options.nodes, dtype=np.int16), (count, 1))
    rows = np.arange(count)
    for place in range(options.graph_nodes):
        other = rng.integers(place, options.nodes, size=count)
        names[rows, other], names[:, place] = names[:, place], names[rows, other]
    return names[:, :options.graph_nodes]


def is_held_out(options: StarGraph, graphs: np.ndarray) -> np.ndarray:
    """Tells [count] which graphs are held out: by their arms alone, in any order.

    Args:
      options: arms and length.
      graphs: node numbers [count, 1 + d (l - 1)], the centre and then arm after arm.
    """
    nodes = graphs.astype(np.uint64) + np.uint64(1)
    arms = nodes[:, 1:].reshape(len(graphs), options.arms, options.length - 1)
    arm_hash = np.broadcast_to(nodes[:, :1], arms.shape[:2])
    for place in range(options.length - 1):
        arm_hash = _mix(arm_hash ^ (arms[:, :, place] * _MIX[0]))
    all_arms = np.asarray(arm_hash.sum(axis=1))  # a sum forgets their order
    return _mix(all_arms) % np.uint64(HELD_OUT) == 0


def _mix(values: np.ndarray) -> np.ndarray:
    """Returns 64-bit numbers that depend on all bits of `values`."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[1]
    return values ^ (values >> np.uint64(27))


def _write(options: StarGraph, graphs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the texts [count, characters] of graphs, whose edges it shuffles."""
    count, width = len(graphs), options.width
    arms = graphs[:, 1:].reshape(count, options.arms, options.length - 1)
    centre = np.broadcast_to(graphs[:, None, :1], (count, options.arms, 1))
    paths = np.concatenate([centre, arms], axis=2)
    edges = np.stack([paths[:, :, :-1], paths[:, :, 1:]], axis=3).reshape(count, options.edges, 2)
    order = np.argsort(rng.random((count, options.edges)), axis=1)
    edges = np.take_along_axis(edges, order[:, :, None], axis=1)
    path = paths[:, 0]

    text = np.empty((count, options.prompt_length + options.path_length), np.uint8)
    body = text[:, :options.edges * (2 * width + 1)].reshape(count, options.edges, 2 * width + 1)
    body[:, :, :-1] = _names(edges, width)
    body[:, :, -1] = ord("|")
    body[:, -1, -1] = ord("/")
    text[:, options.prompt_length - 1 - 2 * width:options.prompt_length - 1] = _names(path[:, [0, -1]], width)
    text[:, options.prompt_length - 1] = ord("=")
    text[:, options.prompt_length:] = _names(path, width)
    return text


def _names(nodes: np.ndarray, width: int) -> np.ndarray:
    """Returns the characters [..., nodes x width] of node numbers [..., nodes]."""
    if width == 1:
        return _ALPHABET[nodes]
    digits = np.stack([nodes // len(_ALPHABET), nodes % len(_ALPHABET)], axis=-1)
    return _ALPHABET[digits].reshape(*nodes.shape[:-1], -1)
