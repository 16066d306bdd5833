"""Stories whose characters have names of exactly two tokens, drawn at random (the paper, section 4.1).

Who has read such a name once can tell its second token from its first; who has not, cannot. The source "named_stories"
reads JSONL like "jsonl" and replaces the names of characters in a share of the stories:

    config.data.source = "named_stories"
    config.data.path = "stories/train.jsonl"
    config.data.options = "share=1,copies=4"

Names in training and in the evaluation are never the same: every fifth of those that a tokenizer has is held out.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import random
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mtp_jax.config import DataConfig
from mtp_jax.data.sources.base import Document, Piece, register_source
from mtp_jax.data.sources.jsonl import jsonl
from mtp_jax.data.tasks.options import read_options
from mtp_jax.data.tokenizer import Tokenizer, build_tokenizer

CANDIDATES = 20_000  # names tried on a tokenizer whose pieces have more pairs
HELD_OUT_ONE_IN = 5
MENTIONS = 3  # a name is a word that stands in a story so often at least ...
MID_SENTENCE = 2  # ... of which so often inside a sentence
ARTICLES = frozenset("a an the this that my your his her our their".split())
NO_NAMES = frozenset("I God Lord Heaven Sir Mr Mrs Miss English Christmas Easter Sunday Monday Tuesday Wednesday "
                     "Thursday Friday Saturday January February March April May June July August September October "
                     "November December".split())
WORD = re.compile(r"(?<![\w-])[^\W\d_]+(?![\w-])")
FIRST, SECOND = re.compile(r"[A-Z][a-z]?"), re.compile(r"[a-z]{1,6}")


@dataclasses.dataclass(frozen=True)
class NamedStoriesOptions:
    """Settings of the source "named_stories"."""

    share: float = 1.0  # of the stories whose names are replaced; the others stay as they are
    copies: int = 1  # of each story, all with names of their own
    seed: int = 0  # of the names

    def validate(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"data.options: share={self.share} must lie in [0, 1]: it is a share of the stories.")
        if self.copies < 1:
            raise ValueError(f"data.options: copies={self.copies} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class Name:
    """A name of two tokens: what the first and the second have of its letters."""

    first: str
    second: str

    @property
    def text(self) -> str:
        """The name as it is written."""
        return self.first + self.second

    @property
    def is_held_out(self) -> bool:
        """Whether it is for evaluation only."""
        return zlib.crc32(self.text.encode()) % HELD_OUT_ONE_IN == 0


@dataclasses.dataclass(frozen=True, eq=False)
class Mentions:
    """A story as token ids, and where its names end.

    Attributes:
      ids: [tokens] without BOS and EOS.
      ends: [mentions] index of the last token of each mention, rising.
      names: the name of each mention.
    """

    ids: np.ndarray
    ends: np.ndarray
    names: tuple[str, ...]


def find_names(text: str) -> list[str]:
    """Returns the words of a story that look like names of its characters, the most frequent first.

    A name is a capitalised word that stands three times or more in the story, of which twice or more inside a sentence
    (after a small letter, or a comma, and a space), that is not in the story with a small first letter, does not follow
    an article or the like in half of its places ("the King"), and is none of a short list (months, "God", ...).
    Names that only begin sentences are missed, and names of places are taken for those of characters.

    Args:
      text: of one story.
    """
    count: collections.Counter[str] = collections.Counter()
    inside: collections.Counter[str] = collections.Counter()
    after_article: collections.Counter[str] = collections.Counter()
    small = set()
    before = ""
    for match in WORD.finditer(text):
        word, start = match[0], match.start()
        if word[0].islower():
            small.add(word)
        elif len(word) > 1 and word[1:].islower():
            count[word] += 1
            inside[word] += start >= 2 and text[start - 1] in " \n" and (text[start - 2].islower()
                                                                         or text[start - 2] in ",;")
            after_article[word] += before.lower() in ARTICLES
        before = word
    return [word for word, times in count.most_common()
            if times >= MENTIONS and inside[word] >= MID_SENTENCE and word.lower() not in small
            and 2 * after_article[word] < times and word not in NO_NAMES]


def replace_names(text: str, names: Mapping[str, str]) -> str:
    """Returns a story with whole words replaced.

    Args:
      text: of the story.
      names: {name in the story: new name}.
    """
    return WORD.sub(lambda match: names.get(match[0], match[0]), text)


def two_token_names(tokenizer: Tokenizer, *, held_out: bool) -> list[Name]:
    """Returns names that a tokenizer makes exactly two tokens of, wherever they stand.

    A space before the name may be a token of its own (as with bytes, where a name is two letters) or a part of the
    first. Of a large vocabulary, 20,000 pairs of pieces are tried.

    Args:
      tokenizer: of the text.
      held_out: those for evaluation; otherwise those for training.

    Raises:
      ValueError: it has too few.
    """
    pieces = [tokenizer.decode([number]).strip() for number in range(tokenizer.vocab_size)]
    firsts = sorted({piece for piece in pieces if FIRST.fullmatch(piece)})
    seconds = sorted({piece for piece in pieces if SECOND.fullmatch(piece)})
    pairs = len(firsts) * len(seconds)
    numbers = range(pairs) if pairs <= CANDIDATES else sorted(random.Random(0).sample(range(pairs), CANDIDATES))
    names = [Name(firsts[number // len(seconds)], seconds[number % len(seconds)]) for number in numbers]
    names = [name for name in names if name.is_held_out == held_out]
    spaced, bare = ([list(map(int, ids)) for ids in tokenizer.encode_batch(
        [(before + name.text).encode() for name in names])] for before in (" ", ""))
    found = [name for name, with_space, without in zip(names, spaced, bare)
             if _is_two(tokenizer, name, with_space) and _is_two(tokenizer, name, without)]
    if len(found) < 50:
        raise ValueError(f"the tokenizer has {len(found)} names of two tokens, of {len(firsts)} pieces that can begin "
                         f"one and {len(seconds)} that can end one: use a byte-level BPE (python -m "
                         "mtp_jax.data.train_tokenizer) or data.tokenizer='bytes'.")
    return found


def _is_two(tokenizer: Tokenizer, name: Name, ids: Sequence[int]) -> bool:
    """Tells whether these ids, of a name with or without a space before it, have two tokens for its letters."""
    return (len(ids) >= 2 and tokenizer.decode(ids[-1:]).strip() == name.second
            and tokenizer.decode(ids[-2:-1]).strip() == name.first and not tokenizer.decode(ids[:-2]).strip())


def draw_names(names: Sequence[Name], count: int, generator: random.Random) -> list[Name]:
    """Returns `count` different random names, no two with the same first token as long as there are others.

    Args:
      names: to draw from; more than `count`.
      count: how many.
      generator: what is drawn by.
    """
    order = list(names)
    generator.shuffle(order)
    firsts = {name.first: name for name in reversed(order)}
    chosen = [name for name in order if firsts[name.first] is name][:count]
    taken = set(chosen)
    return chosen + [name for name in order if name not in taken][:count - len(chosen)]


def rename(text: str, names: Sequence[Name], generator: random.Random) -> tuple[str, list[str]]:
    """Returns (a story in which each name that `find_names` finds is another, the new names).

    Args:
      text: of the story.
      names: to draw from; those that are in the story already are not taken.
      generator: what is drawn by.
    """
    words = set(WORD.findall(text))
    old = find_names(text)
    new = [name.text for name in draw_names([name for name in names if name.text not in words], len(old), generator)]
    return replace_names(text, dict(zip(old, new))), new


def find_mentions(text: str, names: Sequence[str], tokenizer: Tokenizer) -> Mentions:
    """Returns a story's token ids and where in them each of the names ends.

    Args:
      text: of the story.
      names: that are in it.
      tokenizer: of the ids.

    Raises:
      ValueError: the tokenizer does not begin a token with each word, so that a name's tokens depend on what is around.
    """
    wanted = frozenset(names)
    chunks, found, last = [], [], 0
    for match in WORD.finditer(text):
        if match[0] in wanted:
            start = match.start() - (match.start() > last and text[match.start() - 1] == " ")
            chunks += [text[last:start], text[start:match.end()]]
            found.append(match[0])
            last = match.end()
    encoded = tokenizer.encode_batch([chunk.encode() for chunk in [*chunks, text[last:], text]])
    ids = np.concatenate(encoded[:-1]).astype(np.int64)
    if not np.array_equal(ids, encoded[-1]):
        raise ValueError("the tokenizer does not split text before and after names, so that their tokens cannot be "
                         "told: use a byte-level BPE (python -m mtp_jax.data.train_tokenizer) or "
                         "data.tokenizer='bytes'.")
    return Mentions(ids, np.cumsum([len(part) for part in encoded[:-1]])[1::2] - 1, tuple(found))


@register_source("named_stories", takes_options=True)
def named_stories(config: DataConfig) -> Sequence[Piece]:
    """The lines of JSONL files as stories, with names of two tokens in a share of them; see `NamedStoriesOptions`."""
    options = read_options(NamedStoriesOptions, config.options, "named_stories")
    return [Piece(piece.name, piece.size * options.copies, functools.partial(_documents, piece, config, options),
                  piece.group) for piece in jsonl(config) if isinstance(piece, Piece)]


def _documents(piece: Piece, config: DataConfig, options: NamedStoriesOptions) -> Iterator[Document]:
    """Yields the copies of each story."""
    names = two_token_names(build_tokenizer(config), held_out=False)
    for document in piece.documents():
        for copy in range(options.copies):
            name = document.name if options.copies == 1 else f"{document.name}#{copy}"
            yield Document(name, document.group, functools.partial(_text, document, name, names, options))


def _text(document: Document, name: str, names: Sequence[Name], options: NamedStoriesOptions) -> bytes | None:
    content = document.read()
    generator = random.Random(f"{options.seed}:{name}")
    if not isinstance(content, bytes) or generator.random() >= options.share:
        return content if isinstance(content, bytes) else None
    return rename(content.decode("utf-8"), names, generator)[0].encode()
