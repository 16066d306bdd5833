"""Made stories: sentences from templates about characters with names of two tokens, and a tokenizer of whole words.

Where stories of people are too few or too long for a small model to learn from, these need no file and few tokens:

    config.data.source = "made_stories"
    config.data.options = "stories=20000,share=0.2"
    config.data.tokenizer = "made_stories"

In a share of the stories all characters have names that were made for that story alone, so that the second token of a
name can only be known from where the name stood before. The others take theirs from a dozen that are the same in all
stories and can be learned by heart.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from mtp_jax.config import DataConfig, check_seed
from mtp_jax.data.sources.base import Document, Piece, register_source
from mtp_jax.data.tasks.names import Name
from mtp_jax.data.tasks.options import read_options
from mtp_jax.data.tokenizer import register_tokenizer

PIECE = 4096  # stories
# So many pairs that most are in few stories: of fewer, models learn by heart which do not occur.
SECONDS = tuple(consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiouy")
FIRSTS = tuple(syllable.capitalize() for syllable in SECONDS)
FAMILIAR = tuple(Name(FIRSTS[(19 * i + 2) % len(FIRSTS)], SECONDS[(37 * i + 3) % len(SECONDS)]) for i in range(12))
OPENING = ("Once there was a {animal} called {a} .", "Long ago {a} lived with {b} .",
           "One day {a} and {b} went to the {place} .")
SENTENCES = (
    "Then {a} met {b} .", "{a} gave {b} a {thing} .", "But {a} was {feeling} .", "{a} called {b} .",
    "{a} and {b} saw a {adjective} {animal} .", "In the {place} {a} found {b} .", "Please help {b} , said {a} .",
    "{a} took the {thing} home .", "When {b} came , {a} was {feeling} .", "The {animal} ran to {a} .",
    "{a} told {b} about the {thing} .", "{b} , said {a} , come to the {place} .", "So {a} followed {b} .",
    "The {thing} of {a} was {adjective} .")
WORDS = {
    "place": "forest garden house river castle village field cave market tower hill lake".split(),
    "thing": "ring apple lamp key book crown boat drum stone flower bell cloak".split(),
    "animal": "fox bear cat dog bird horse frog wolf mouse goat".split(),
    "adjective": "old little golden big red strange lovely cold bright small".split(),
    "feeling": "glad sad tired angry afraid hungry happy lost".split()}
_SLOTS = tuple(WORDS)
_TOKEN = re.compile(r"[^\W\d_]+|[^\s]")


@dataclasses.dataclass(frozen=True)
class MadeStoriesOptions:
    """Settings of the source "made_stories"."""

    stories: int = 20_000
    sentences: int = 12  # of a story
    characters: int = 3  # of a story
    share: float = 1.0  # of the stories that have names of their own; the others have familiar ones
    seed: int = 0

    def validate(self) -> None:
        if self.stories < 2 or self.sentences < 1:
            raise ValueError(f"data.options: stories={self.stories} must be 2 or more, sentences={self.sentences} 1 or "
                             "more.")
        if not 1 <= self.characters <= len(FAMILIAR):
            raise ValueError(f"data.options: characters={self.characters} must lie in 1..{len(FAMILIAR)}.")
        if not 0 <= self.share <= 1:
            raise ValueError(f"data.options: share={self.share} must lie in [0, 1]: it is a share of the stories.")
        check_seed("data.options", self)


@dataclasses.dataclass(frozen=True)
class MadeStory:
    """A story and its characters.

    Attributes:
      text: of it.
      names: its characters'.
    """

    text: str
    names: tuple[Name, ...]


@functools.cache
def own_names(held_out: bool) -> tuple[Name, ...]:
    """Returns the names that are made for one story: all pairs of syllables that are no familiar name.

    Args:
      held_out: those for evaluation; otherwise those for training.
    """
    names = (Name(first, second) for first in FIRSTS for second in SECONDS)
    words = set(_TOKEN.findall(" ".join((*OPENING, *SENTENCES))))
    return tuple(name for name in names
                 if name not in FAMILIAR and name.text not in words and name.is_held_out == held_out)


def make_stories(options: MadeStoriesOptions, start: int, stop: int, *, held_out: bool = False) -> Iterator[MadeStory]:
    """Yields stories; each piece of 4096 depends on the options and its number alone.

    Args:
      options: of the stories.
      start: first story; a multiple of 4096.
      stop: the one after the last.
      held_out: take names that no story for training has.
    """
    pool = own_names(held_out)
    for first in range(start, stop, PIECE):
        generator = np.random.Generator(np.random.Philox(key=[options.seed, 2 * (first // PIECE) + held_out]))
        draws = generator.random((min(PIECE, stop - first), options.sentences, 3 + len(_SLOTS)))
        for drawn in draws:
            # The first sentence's draws of characters are spare for what is drawn once a story.
            names = _draw(pool if drawn[0, 0] < options.share else FAMILIAR, options.characters,
                          int(drawn[0, 1] * 2**53))
            yield MadeStory(" ".join(_sentence(row, names, opening=number == 0) for number, row in enumerate(drawn)),
                            names)


def _draw(pool: Sequence[Name], count: int, seed: int) -> tuple[Name, ...]:
    """Returns `count` names of a pool, no two with the same first syllable; numpy's own generators start too slowly."""
    names: dict[str, Name] = {}
    while len(names) < count:
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        name = pool[(seed >> 33) % len(pool)]
        names.setdefault(name.first, name)
    return tuple(names.values())


def _sentence(drawn: np.ndarray, names: Sequence[Name], opening: bool) -> str:
    templates = OPENING if opening else SENTENCES
    count = len(names)
    a = 0 if opening else int(drawn[1] * count)
    b = (a + 1 + int(drawn[2] * max(count - 1, 1))) % count if not opening else min(1, count - 1)
    template = templates[int((drawn[3] * 7919) % 1 * len(templates))]
    words = {slot: WORDS[slot][int(drawn[3 + i] * len(WORDS[slot]))] for i, slot in enumerate(_SLOTS)}
    return template.format(a=names[a].text, b=names[b].text, **words)


@register_source("made_stories", takes_options=True)
def made_stories(config: DataConfig) -> Sequence[Piece]:
    """Stories from templates; see `MadeStoriesOptions`."""
    options = read_options(MadeStoriesOptions, config.options, "made_stories")
    return [Piece(f"made_stories@{start:09d}", 400 * (min(start + PIECE, options.stories) - start),
                  functools.partial(_documents, options, start, min(start + PIECE, options.stories)))
            for start in range(0, options.stories, PIECE)]


def _documents(options: MadeStoriesOptions, start: int, stop: int) -> Iterator[Document]:
    for number, story in enumerate(make_stories(options, start, stop), start):
        name = f"made_stories@{number:09d}"
        yield Document(name, name, story.text.encode)


class MadeStoriesTokenizer:
    """Whole words of made stories, names as their two syllables; other words are one id, "?".

    Attributes: see `Tokenizer`.
    """

    takes_bytes = False

    def __init__(self) -> None:
        words = set(_TOKEN.findall(" ".join(re.sub(r"{\w+}", "", text) for text in (*OPENING, *SENTENCES))))
        words.update(word for some in WORDS.values() for word in some)
        self._pieces = ("<bos>", "<eos>", "<pad>", "<?>", *sorted(words), *FIRSTS, *SECONDS)
        self._words = {word: number for number, word in enumerate(self._pieces[:4 + len(words)])}
        self._firsts = {piece: 4 + len(words) + i for i, piece in enumerate(FIRSTS)}
        self._seconds = {piece: 4 + len(words) + len(FIRSTS) + i for i, piece in enumerate(SECONDS)}
        self.vocab_size = len(self._pieces)
        self.bos_id, self.eos_id, self.pad_id, self._unknown = range(4)
        self.hash = hashlib.sha256("\n".join(("made stories", *self._pieces)).encode()).hexdigest()

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids [tokens] (uint16) of a text, without BOS and EOS."""
        ids: list[int] = []
        for word in _TOKEN.findall(text if isinstance(text, str) else text.decode("utf-8")):
            if word in self._words:
                ids.append(self._words[word])
            elif word[:2] in self._firsts and word[2:] in self._seconds:
                ids += self._firsts[word[:2]], self._seconds[word[2:]]
            else:
                ids.append(self._unknown)
        return np.array(ids, np.uint16)

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Returns the ids of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of ids [tokens], words with spaces between them; BOS, EOS and PAD are dropped."""
        first_of_second = self.vocab_size - len(SECONDS)
        text = "".join(self._pieces[number] if number >= first_of_second else " " + self._pieces[number]
                       for number in map(int, np.asarray(ids).reshape(-1)) if 3 <= number < self.vocab_size)
        return text.removeprefix(" ")


@register_tokenizer("made_stories")
def made_stories_tokenizer(config: DataConfig) -> MadeStoriesTokenizer:
    """Whole words, for the source of the same name."""
    del config
    return MadeStoriesTokenizer()
