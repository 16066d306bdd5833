"""Documents, pieces, and the registry of functions from the data config to them.

A source is one function. Written in an experiment's own module, it is found by name like the built-in ones:

    from mtp_jax.data import Document, register_source

    @register_source("poems")
    def poems(config):
        return [Document(name=f"poem-{i}", group=f"poem-{i}", read=text.encode) for i, text in enumerate(my_poems())]

and `config.data.source="poems"` trains on it. Documents that share a `group` never end up on both sides of the split.
Where one file holds many documents, a source returns pieces instead, so that nothing is read to list them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mtp_jax.config import DataConfig, check_choice
from mtp_jax.registry import claim


@dataclasses.dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Attributes:
      name: unique in the corpus and the same on every machine, such as a path relative to the corpus's root. Order and
        split depend on names alone, the corpus's hash on names and contents.
      group: what the split keeps together; the file that the document comes from, or the document itself.
      read: returns the UTF-8 bytes of the text, or the ids [tokens] of a document that is tokenized already, or None
        for a record without a text, which is left out and counted. Raises `NotText` to say more of a broken text than
        that its bytes are no UTF-8.
    """

    name: str
    group: str
    read: Callable[[], bytes | np.ndarray | None] = dataclasses.field(compare=False)


class NotText(ValueError):
    """A document's text is no UTF-8. An error or skipped, as data.skip_invalid says; or kept, for bytes.

    Attributes:
      content: the bytes for a tokenizer that takes any; None where there are none.
    """

    def __init__(self, message: str, content: bytes | None = None) -> None:
        super().__init__(message)
        self.content = content


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a corpus that one process reads in one go: a file, or a range of a large one.

    Attributes:
      name: unique in the corpus and the same on every machine.
      size: bytes on disk, to share the work out by.
      documents: returns the documents in order. Pieces go to other processes, so it must pickle: a
        `functools.partial` of a function at the top level of a module does.
      group: of all its documents, where that is known without reading them; "" where it is not. Known for all pieces,
        the held-out share of a corpus that is prepared is exact.
    """

    name: str
    size: int
    documents: Callable[[], Iterator[Document]] = dataclasses.field(compare=False)
    group: str = ""


def ranges(total: int, count: int) -> list[tuple[int, int]]:
    """Returns [0, total) cut into `count` ranges of about the same size, for a source to make pieces of."""
    bounds = [total * i // max(count, 1) for i in range(count + 1)]
    return list(zip(bounds[:-1], bounds[1:]))


Source = Callable[[DataConfig], Sequence[Document | Piece]]
SOURCES: dict[str, Source] = {}
WITH_OPTIONS: set[str] = set()  # sources that read data.options


def register_source(name: str, *, takes_options: bool = False) -> Callable[[Source], Source]:
    """Makes a function available as `config.data.source=name`.

    Args:
      name: what the config calls it.
      takes_options: it reads `config.options`, which is an error beside any other source.

    Returns:
      A decorator for a function that takes the `DataConfig` of one source and returns documents or pieces, in any
      order, without reading their contents.

    Raises:
      ValueError: the name is taken by another function.
    """
    def register(source: Source) -> Source:
        claim("data source", name, SOURCES, source)
        SOURCES[name] = source
        if takes_options:
            WITH_OPTIONS.add(name)
        return source

    return register


def find(config: DataConfig) -> Sequence[Document | Piece]:
    """Returns what the source named by `config.source` lists.

    Raises:
      ValueError: the source is unknown, has no options and is given some, or cannot find what `config.path` names.
    """
    check_choice("data.source", config.source, SOURCES)
    if config.options and config.source not in WITH_OPTIONS:
        raise ValueError(f"data.options={config.options!r} is not read by data.source={config.source!r}: leave it out; "
                         f"only {', '.join(sorted(WITH_OPTIONS)) or 'synthetic sources'} have options.")
    return SOURCES[config.source](config)


def where(config: DataConfig) -> str:
    """Returns the field that names the corpus, for messages."""
    return f"data.path={config.path!r}" if config.path else f"data.source={config.source!r}"
