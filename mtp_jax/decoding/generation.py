"""What generating gives back."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Generation:
    """Continuations of a batch of prompts, and what they took.

    Attributes:
      tokens: the new ids of each row; a stop token is not among them.
      lengths: how many each row has.
      drafted_by: beside each new id the head that drafted it; 1 is head 1 itself, which verifies the others.
      finished: why each row ended: "stop" (a stop token), "length" (max_new_tokens), "window" (no room for more),
        "enough" (on_tokens said so).
      heads: k, how many heads were used.
      forwards: forwards of each row, [B]; its prompt's counts as one, so that head 1 alone has one a token.
      blocks: those of them that verified drafts, [B].
      accepted: in how many blocks at least 1, 2, .. drafts went into the text, [B, k - 1].
      produced: new tokens of each row, [B]; a stop token counts.
      seconds: time of the device for prompts and loop; compiling does not count.
      prompt_seconds: the part of it that went into the prompts.
      trunk_loops: most loops of the trunk; 1 for a plain one.
      token_loops: with early exit, loops after which the positions left that chose each row's new tokens, added up,
        [B]; None: all loops were run.
      loops_run: with early exit, loops that the batch ran, its prompts' forward and all blocks together.
      text: of each row; None without a tokenizer.
    """

    tokens: list[np.ndarray]
    lengths: list[int]
    drafted_by: list[np.ndarray]
    finished: list[str]
    heads: int
    forwards: np.ndarray
    blocks: np.ndarray
    accepted: np.ndarray
    produced: np.ndarray
    seconds: float
    prompt_seconds: float
    trunk_loops: int = 1
    token_loops: np.ndarray | None = None
    loops_run: int | None = None
    text: list[str] | None = None

    @property
    def tokens_per_forward(self) -> float:
        """New tokens over forwards, of all rows together; 1 for head 1 alone, at most k."""
        return float(self.produced.sum() / self.forwards.sum())

    @property
    def acceptance(self) -> list[float]:
        """Share of the blocks in which the draft at position 1, 2, .. was accepted, and so all before it."""
        blocks = int(self.blocks.sum())
        return [float(count / blocks) if blocks else 0.0 for count in self.accepted.sum(axis=0)]

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all rows over seconds."""
        return float(self.produced.sum() / self.seconds)

    @property
    def loops_per_token(self) -> float:
        """Loops of the trunk after which a new token was chosen, mean over all of them."""
        return float(self.trunk_loops if self.token_loops is None else self.token_loops.sum() / self.produced.sum())

    @property
    def loops_per_forward(self) -> float:
        """Loops that a forward of the batch ran, mean over them: as many as its slowest position, drafts counted."""
        return float(self.trunk_loops if self.loops_run is None else self.loops_run / self.forwards.max())

    def stats(self) -> dict[str, Any]:
        """Returns what `generate --stats` writes."""
        loops = {"loops_per_token": self.loops_per_token, "loops_per_forward": self.loops_per_forward}
        return {"tokens": int(self.produced.sum()), "forwards": int(self.forwards.sum()),
                "tokens_per_forward": self.tokens_per_forward, "seconds": self.seconds,
                "tokens_per_second": self.tokens_per_second, "acceptance": self.acceptance,
                **(loops if self.trunk_loops > 1 else {})}
