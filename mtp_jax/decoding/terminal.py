"""Text as it grows: what can no longer change, by which head it was drafted, and how a terminal shows that."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from mtp_jax.data.tokenizer import Tokenizer

# Of xterm's 256 colours, by head from the second on. Each has a contrast of 3.5 or more to white and of 4 or more to
# black, so that it can be read on both; a test holds that.
PALETTE = (33, 28, 166, 163, 30, 196, 99)
_RESET = "\x1b[0m"
_UNDECODED = "\ufffd"  # what an unfinished character decodes to
_OVERLAP = 6  # tokens of the prompt that the first new ones are decoded with
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")  # control characters but tab and newline


class TextStream:
    """Makes text of tokens that come one after the other, giving out only what later tokens leave as it is.

    A token may end within a character, and some tokenizers put a space before a token only if another stands before
    it. So tokens are decoded together with some before them, and held back while the text ends in a broken character.

        stream = TextStream(tokenizer, prompt_ids)
        for ids, heads in accepted:
            for text, head in stream.push(ids, heads): ...
        for text, head in stream.finish(): ...
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]):
        """Begins behind a prompt.

        Args:
          tokenizer: of the ids.
          prompt: the ids before the first new one.
        """
        self._tokenizer = tokenizer
        self._ids = [int(index) for index in prompt[-_OVERLAP:]]
        self._done = len(self._ids)  # ids whose text was given out; all before the first new one
        self._before = self._decode(self._ids)
        self._head = 1  # that drafted the last token

    def push(self, ids: Iterable[int], heads: Iterable[int]) -> Iterator[tuple[str, int]]:
        """Takes tokens and yields pieces of text, each with the head that drafted its last token.

        Args:
          ids: the new tokens.
          heads: the head that each comes from.
        """
        for index, head in zip(ids, heads):
            self._ids.append(int(index))
            self._head = int(head)
            text = self._decode(self._ids)
            if not text.endswith(_UNDECODED):
                yield from self._give(text)

    def finish(self) -> Iterator[tuple[str, int]]:
        """Yields what was held back: characters that the tokens leave broken."""
        if self._done < len(self._ids):
            yield from self._give(self._decode(self._ids))

    def _give(self, text: str) -> Iterator[tuple[str, int]]:
        """Yields what `text` has more than was given out, if anything; its tokens are then what the next stand behind.
        """
        new = text[len(self._before):]
        if new:
            self._ids = self._ids[self._done:]
            self._done = len(self._ids)
            self._before = self._decode(self._ids)
            yield new, self._head

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


def pieces(tokenizer: Tokenizer, prompt: Sequence[int], ids: Iterable[int],
           heads: Iterable[int]) -> list[tuple[str, int]]:
    """Returns the text of tokens that are all there as (text, head that drafted it); neighbours of a head are one.

    Args:
      tokenizer: of the ids.
      prompt: the ids before the first new one.
      ids: the new tokens.
      heads: the head that each comes from.
    """
    stream = TextStream(tokenizer, prompt)
    joined: list[tuple[str, int]] = []
    for text, head in [*stream.push(ids, heads), *stream.finish()]:
        if joined and joined[-1][1] == head:
            joined[-1] = (joined[-1][0] + text, head)
        else:
            joined.append((text, head))
    return joined


def colour(text: str, head: int) -> str:
    """Returns the text as a terminal shows what `head` drafted: plain for head 1, else in a colour.

    There are colours for heads 2 to 8; those after have the same, underlined. A colour does not run over the end of a
    line, where a pager would lose it.
    """
    if head <= 1:
        return text
    number, underlined = PALETTE[(head - 2) % len(PALETTE)], "4;" if head - 2 >= len(PALETTE) else ""
    lines = text.split("\n")
    return "\n".join(f"\x1b[{underlined}38;5;{number}m{line}{_RESET}" if line else "" for line in lines)


def legend(heads: int) -> str:
    """Returns one line that says which colour stands for which head, of heads 1 to `heads`."""
    return "drafted by: " + ", ".join(
        ["head 1 itself (plain)", *(colour(f"head {head}", head) for head in range(2, heads + 1))])


def harmless(text: str) -> str:
    """Returns the text with every control character but tab and newline as a picture, for a terminal obeys them.

    A model of bytes may write any of them.
    """
    return _OBEYED.sub(lambda found: chr(0x2400 + ord(found[0])) if found[0] < " " else
                       "\u2421" if found[0] == "\x7f" else _UNDECODED, text)
