"""The conditions of the insertion experiment, joined as ids: what is inserted, how much of it, and where.

    filler, = fillers(tokenizer, [Condition(MEANINGLESS, "/")], k=55)
    row = insert(question_ids, filler.ids, bos=tokenizer.bos_id, instruction=instruction_ids)
    row.ids[row.filler_start:row.filler_end]  # the 55 inserted ones

Ids, not texts, are joined: in text a tokenizer merges a run such as "////" into fewer tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mtp_jax.config import check_choice
from mtp_jax.data.tokenizer import Tokenizer

NONE, MEANINGLESS, MEANINGFUL, RANDOM = "none", "meaningless", "meaningful", "random"
CONDITIONS = (NONE, MEANINGLESS, MEANINGFUL, RANDOM)
BEFORE, BETWEEN, END, ANYWHERE = "before", "between", "end", "random"
POSITIONS = (BEFORE, BETWEEN, END, ANYWHERE)
LENGTHS = (0, 10, 25, 40, 55, 70)  # k, as the source sweeps it
SENTENCES = (  # of the control, unless others are given; none has to do with any task
    "The train left the station before noon.", "A grey cat slept on the warm stone wall.",
    "Nobody had watered the plants for a week.", "She kept the old letters in a wooden box.",
    "Rain fell on the harbour all night long.", "The baker opened his shop at dawn.",
    "Two boys threw pebbles into the river.", "The museum is closed on the first Monday.",
    "His coat was too thin for the winter.", "They painted the kitchen a pale yellow.",
    "The orchestra tuned for a long time.", "A letter came from the coast in spring.",
    "The bridge was built of local stone.", "Her brother sold bicycles in a small town.",
    "The lamp in the hall had gone out.", "Snow covered the road to the village.")


@dataclasses.dataclass(frozen=True)
class Condition:
    """What is inserted.

    Attributes:
      name: one of CONDITIONS.
      unit: the text that is repeated; "" for none and for random sentences.
    """

    name: str
    unit: str = ""

    def __post_init__(self) -> None:
        check_choice("condition", self.name, CONDITIONS)
        if self.name in (MEANINGLESS, MEANINGFUL) and not self.unit:
            raise ValueError(f"The filler of the condition {self.name!r} is empty: give --{self.name}=TEXT, or leave "
                             "the condition out.")


@dataclasses.dataclass(frozen=True)
class Filler:
    """The ids that a condition inserts.

    Attributes:
      condition: its name.
      k: repetitions asked for; with `same_tokens` ids.
      ids: int32.
      unit_tokens: ids of one repetition; 0 for none and for random sentences.
      run_tokens: ids of all repetitions, before `same_tokens` cuts them.
      text_tokens: ids that the same repetitions have as one text: fewer where the tokenizer merges them.
    """

    condition: str
    k: int
    ids: np.ndarray
    unit_tokens: int = 0
    run_tokens: int = 0
    text_tokens: int = 0

    @property
    def merged(self) -> bool:
        """Whether the tokenizer writes the run, as one text, in another number of ids than are joined."""
        return self.text_tokens != self.run_tokens

    def told(self, unit: str) -> str:
        """Returns a line on what is inserted, such as "55 x '/': 55 tokens"."""
        if self.condition == RANDOM:
            return f"random sentences, cut to {len(self.ids)} tokens"
        line = f"{self.k} x {unit!r}: {len(self.ids)} tokens"
        if self.unit_tokens > 1:
            line += f", {self.unit_tokens} for each"
        if self.merged:
            line += (f" (as one text the tokenizer writes the run in {self.text_tokens}, not {self.run_tokens}: it "
                     f"merges, so the ids of {unit!r} alone are repeated)")
        return line


@dataclasses.dataclass(frozen=True)
class Insertion:
    """A prompt with what was inserted into it: BOS, instruction, filler, question, or as the position says.

    Attributes:
      ids: all of it, int32.
      filler_start: index of the first inserted id.
      filler_end: index behind the last one; equal to filler_start where nothing was inserted.
      question_start: index in `ids` of the question's first id.
      question: index of each of the question's ids in `ids`, in order; the filler may lie among them.
    """

    ids: np.ndarray
    filler_start: int
    filler_end: int
    question_start: int
    question: np.ndarray

    @property
    def inserted(self) -> int:
        """Number of inserted ids."""
        return self.filler_end - self.filler_start

    @property
    def kept(self) -> np.ndarray:
        """Indices in `ids` of everything that was not inserted, so that conditions line up on the same tokens."""
        return np.delete(np.arange(len(self.ids)), np.s_[self.filler_start:self.filler_end])


def chosen(names: Sequence[str], *, meaningless: str, meaningful: str) -> list[Condition]:
    """Returns the conditions beside "none", which is always measured.

    Args:
      names: what --condition names; empty: all.
      meaningless: text that is repeated as meaningless.
      meaningful: as meaningful.

    Raises:
      ValueError: a name is unknown, "none" stands alone, or a filler is empty.
    """
    for name in names:
        check_choice("--condition", name, CONDITIONS)
    units = {MEANINGLESS: meaningless, MEANINGFUL: meaningful}
    found = [Condition(name, units.get(name, "")) for name in names or CONDITIONS if name != NONE]
    if not found:
        raise ValueError("--condition=none alone inserts nothing: name another beside it.")
    return found


def read_sentences(path: str) -> tuple[str, ...]:
    """Returns the sentences of the control: those of a file, one a line, or where it is "" those that are built in.

    Raises:
      ValueError: the file does not exist, or has none.
    """
    if not path:
        return SENTENCES
    from etils import epath

    file = epath.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"--sentences={path} is no file: name one with a sentence a line.")
    found = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    if not found:
        raise ValueError(f"--sentences={path} holds no sentence: give one a line.")
    return found


def fillers(tokenizer: Tokenizer, conditions: Sequence[Condition], k: int, *, seed: int | Sequence[int] = 0,
            same_tokens: bool = False, sentences: Sequence[str] = SENTENCES) -> list[Filler]:
    """Returns what each condition inserts.

    Args:
      tokenizer: the model's own.
      conditions: which.
      k: repetitions of a unit.
      seed: of the random sentences; with the same seed those of a larger k go on from those of a smaller one.
      same_tokens: k counts ids instead: a unit of several ids is repeated and cut to k of them.
      sentences: that the control draws from.

    Raises:
      ValueError: k is negative, or the tokenizer has no id for a unit.
    """
    if k < 0:
        raise ValueError(f"k={k} must be at least 0: it counts repetitions, and 0 inserts nothing.")
    # As many ids of random sentences as of the meaningless run, where there is one.
    like = next((condition for condition in conditions if condition.name == MEANINGLESS), None)
    size = k if like is None or same_tokens else k * len(_unit_ids(tokenizer, like))
    found = []
    for condition in conditions:
        if condition.name == NONE:
            found.append(Filler(NONE, 0, np.zeros(0, np.int32)))
        elif condition.name == RANDOM:
            found.append(Filler(RANDOM, k, _random_ids(tokenizer, size, seed, sentences)))
        else:
            unit = _unit_ids(tokenizer, condition)
            times = -(-k // len(unit)) if same_tokens else k
            run = np.tile(unit, times)
            found.append(Filler(condition.name, k, run[:k] if same_tokens else run, len(unit), len(run),
                                len(tokenizer.encode(condition.unit * times))))
    return found


def insert(question: np.ndarray, filler: np.ndarray, *, bos: int | None, instruction: np.ndarray | None = None,
           position: str = BETWEEN, seed: int | Sequence[int] = 0) -> Insertion:
    """Joins a prompt from ids.

    Args:
      question: ids, at least one.
      filler: ids to insert; may be empty.
      bos: id that the prompt begins with; None: none.
      instruction: ids before the question; None or empty: none, so that "before" and "between" are the same place.
      position: "before" the instruction, "between" it and the question, at the "end", or "random": as one run at a
        place drawn among those inside instruction and question.
      seed: of that place; it does not depend on the filler, so that conditions can be compared.

    Raises:
      ValueError: the position is unknown, or the question is empty.
    """
    check_choice("position", position, POSITIONS)
    question, filler = np.asarray(question, np.int32), np.asarray(filler, np.int32)
    if question.size == 0:
        raise ValueError("The question has no token: give one with some text.")
    head = np.asarray([] if bos is None else [bos], np.int32)
    before = np.asarray([] if instruction is None else instruction, np.int32)
    whole = np.concatenate([head, before, question])
    start = len(head) + len(before)
    first = len(head)
    if position == ANYWHERE:
        # Strictly inside: the other positions stand for the places at the rims.
        place = int(np.random.default_rng(seed).integers(first + 1, max(first + 2, len(whole))))
    else:
        place = {BEFORE: first, BETWEEN: start, END: len(whole)}[position]
    ids = np.concatenate([whole[:place], filler, whole[place:]])
    places = np.arange(start, len(whole))
    places = places + len(filler) * (places >= place)
    return Insertion(ids, place, place + len(filler), int(places[0]), places)


def check_fits(insertion: Insertion, window: int, *, more: int = 0, name: str = "The prompt") -> None:
    """Raises ValueError where a prompt does not fit.

    Args:
      insertion: the prompt.
      window: tokens that the model's context holds.
      more: tokens that must fit behind it, such as an answer.
      name: of the problem, for the message.
    """
    needed = len(insertion.ids) + more
    if needed > window:
        raise ValueError(f"{name} needs {needed} tokens, {insertion.inserted} of them inserted, and the window holds "
                         f"{window}: lower --k, take a shorter text, or raise --window beyond what the model was "
                         "trained on.")


def _unit_ids(tokenizer: Tokenizer, condition: Condition) -> np.ndarray:
    """Returns the ids of a unit."""
    ids = np.asarray(tokenizer.encode(condition.unit), np.int32)
    if ids.size == 0:
        raise ValueError(f"--{condition.name}={condition.unit!r} has no token in this model's tokenizer: give another "
                         "text.")
    return ids


def _random_ids(tokenizer: Tokenizer, size: int, seed: int | Sequence[int], sentences: Sequence[str]) -> np.ndarray:
    """Returns so many ids of sentences drawn at random."""
    random, ids = np.random.default_rng(seed), np.zeros(0, np.int32)
    while len(ids) < size:
        sentence = sentences[int(random.integers(len(sentences)))] + " "
        new = np.asarray(tokenizer.encode(sentence), np.int32)
        if new.size == 0:
            raise ValueError(f"The model's tokenizer has no token for the sentence {sentence!r}: give others, or leave "
                             f"out the condition {RANDOM!r}.")
        ids = np.concatenate([ids, new])
    return ids[:size]
