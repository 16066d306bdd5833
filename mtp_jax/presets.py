"""The paper's model shapes and training recipes, by name (Gloeckle et al. 2024, Tables S14 and S13).

    apply_shape(config, "7b")
    apply_recipe(config, "code_7b_1t")

writes them into an experiment's ConfigDict. What the paper does not say (the width of the feed-forward layer, the
vocabulary of the code models, the base of the rotary angles) is that of the released 7B checkpoints: Llama 2's.

    apply_looped(config, "374m", loops=4)

writes a shape and the recipe of the looped models of Zhu et al. 2025, which say what `LOOPED_SHAPES` tells.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mtp_jax.config import check_choice

BATCH_UNIT = 2**20  # tokens; what Table S13 counts batches in
NON_EMBEDDING, TOTAL = "non-embedding", "total"


@dataclasses.dataclass(frozen=True)
class Shape:
    """A row of Table S14. Trunk and heads share `num_layers`, so that parameters do not depend on the number of heads.

    The released 7B rounds the feed-forward width 8/3 d_model up to a multiple of 256. Where that would take the layers
    more than 2 % past 12 d_model^2 each, which the sizes' names count, the multiple is the next power of two below.
    """

    d_model: int
    num_layers: int
    num_attention_heads: int
    counts: str  # parameters that the name counts: all, or those outside embedding and unembedding
    recipe: str  # pre-training recipe of the same section of the paper
    vocab_size: int | None = None  # ids; None: the tokenizer's, for the paper does not tell the small models'
    d_ff_multiple: int = 256


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A row of Table S13. All have AdamW with decays 0.9 and 0.95, weight decay 0.1, a linear warm-up, then cosine."""

    batch: float  # tokens a step, in units of 2**20
    num_steps: int
    warmup_steps: int
    learning_rate: float  # peak
    seq_len: int  # context, tokens
    decay_ratio: float = 0.03  # last learning rate over the peak
    clip_norm: float = 1.0  # largest Euclidean norm of the gradient
    byte_level: bool = False  # the vocabulary is bytes, and every head has an unembedding of its own

    @property
    def tokens_per_step(self) -> int:
        return int(self.batch * BATCH_UNIT)

    @property
    def batch_size(self) -> int:
        """Rows a step."""
        return self.tokens_per_step // self.seq_len


SHAPES = {
    # Induction and arithmetic (section 4).
    "1m": Shape(128, 5, 4, NON_EMBEDDING, "induction", d_ff_multiple=8),
    "3m": Shape(256, 4, 8, NON_EMBEDDING, "induction", d_ff_multiple=16),
    "10m": Shape(384, 6, 8, NON_EMBEDDING, "induction"),
    "30m": Shape(512, 10, 8, NON_EMBEDDING, "induction", d_ff_multiple=32),
    "100m": Shape(768, 14, 12, NON_EMBEDDING, "induction"),
    "300m": Shape(1024, 25, 16, NON_EMBEDDING, "induction", d_ff_multiple=64),
    "1b": Shape(1536, 36, 24, NON_EMBEDDING, "induction"),
    # Code (section 3).
    "0.3b": Shape(1024, 18, 16, TOTAL, "scaling", 32_000, d_ff_multiple=64),
    "0.6b": Shape(1280, 27, 20, TOTAL, "scaling", 32_000, d_ff_multiple=128),
    "1.3b": Shape(2048, 24, 16, TOTAL, "scaling", 32_000, d_ff_multiple=128),
    "3b": Shape(2560, 36, 20, TOTAL, "scaling", 32_000),
    "6.7b": Shape(4096, 32, 32, TOTAL, "scaling_7b", 32_000),
    "13b": Shape(5120, 40, 40, TOTAL, "scaling_13b", 32_000),
}
ALIASES = {"7b": "6.7b"}

RECIPES = {
    # Pre-training: batch, steps, warm-up, peak learning rate, context.
    "scaling": Recipe(8, 10_850, 1000, 3e-4, 4096),  # 0.3B to 3B
    "scaling_7b": Recipe(8, 25_000, 2000, 3e-4, 4096),
    "scaling_13b": Recipe(8, 25_000, 1000, 3e-4, 4096),  # half the warm-up of 7B, as the table has it
    "code_7b_200b": Recipe(8, 25_000, 2000, 3e-4, 4096),
    "code_7b_500b": Recipe(7, 68_570, 2000, 3e-4, 4096),
    "code_7b_1t": Recipe(7, 136_240, 2000, 3e-4, 4096),
    "bytes_7b": Recipe(12, 25_000, 2000, 3e-4, 8192, byte_level=True),
    "language_7b_200b": Recipe(8, 25_000, 2000, 3e-4, 4096, decay_ratio=0.1),
    "language_7b_500b": Recipe(8, 60_000, 2000, 3e-4, 4096, decay_ratio=0.1),
    "induction": Recipe(0.25, 100_000, 2000, 1e-4, 2048),
    "induction_books": Recipe(0.5, 50_000, 2000, 1e-4, 2048),
    "arithmetic_30m": Recipe(0.25, 100_000, 2000, 1e-4, 1024),
    "arithmetic_100m": Recipe(0.25, 100_000, 2000, 1e-4, 2048),
    # Fine-tuning.
    "bigpatent": Recipe(0.125, 76_680, 100, 3e-5, 4096),
    "cnn_dailymail": Recipe(0.125, 7140, 100, 3e-5, 4096),
    "multi_news": Recipe(0.125, 3330, 100, 3e-5, 4096),
    "orangesum": Recipe(0.125, 360, 100, 3e-5, 4096),
    "pn_summary": Recipe(0.125, 3450, 100, 3e-5, 4096),
    "samsum": Recipe(0.125, 60, 100, 3e-5, 4096),  # as the table has it: ends inside the warm-up
    "thaisum": Recipe(0.125, 23_640, 100, 3e-5, 4096),
    "wikisummary": Recipe(0.125, 2550, 100, 3e-5, 4096),
    "xsum": Recipe(0.125, 2760, 100, 3e-5, 4096),
    "codecontests": Recipe(0.25, 13_000, 400, 5e-5, 4096, decay_ratio=0.004, clip_norm=0.1),
}

# Zhu et al. 2025, "Scaling Latent Reasoning via Looped Language Models". They give N of the scaling experiment, and for
# 1.4B 24 layers of width 2048; the vocabulary is SmolLM2's, attention has as many key and value heads as query heads.
# All else is OUR CHOICE: widths and depths with an N outside embedding and unembedding within 2 % of theirs (the name
# "1.4b" counts all parameters, and is 2.5 % off), a feed-forward width of 8/3 d_model, heads of 64 or 128, and that it
# is these parameters that N counts.
LOOPED_SHAPES = {
    "53m": Shape(512, 17, 8, NON_EMBEDDING, "looped", 49_152, d_ff_multiple=32),
    "134m": Shape(768, 19, 12, NON_EMBEDDING, "looped", 49_152),
    "374m": Shape(1024, 29, 16, NON_EMBEDDING, "looped", 49_152),
    "778m": Shape(1792, 20, 14, NON_EMBEDDING, "looped", 49_152),
    "1.364b": Shape(2048, 27, 16, NON_EMBEDDING, "looped", 49_152, d_ff_multiple=128),
    "1.4b": Shape(2048, 24, 16, TOTAL, "looped", 49_152),
}
LOOPED_LOOPS = (2, 4, 8)  # T_m of their law of the loss; 1 beside them for benchmarks

# 20 billion tokens a run, batches of 4 million, 3e-4 constant, AdamW 0.9 and 0.95, decay 0.1, clipping at 1. Context
# and warm-up are ours. The rate is that of 1.4B and 2.6B; they found that looped models want a lower one than plain.
LOOPED_RECIPE = Recipe(4, 4768, 200, 3e-4, 4096)


def get_shape(size: str) -> Shape:
    """Returns the shape of a size such as "0.3b" or "7B".

    Raises:
      ValueError: there is none of that name; the nearest is suggested.
    """
    size = size.lower()
    check_choice("size", size, [*SHAPES, *ALIASES])
    return SHAPES[ALIASES.get(size, size)]


def get_recipe(name: str) -> Recipe:
    """Returns the recipe of that name.

    Raises:
      ValueError: there is none of that name; the nearest is suggested.
    """
    check_choice("recipe", name, RECIPES)
    return RECIPES[name]


def apply_shape(config: Any, size: str) -> None:
    """Writes the shape of a size into an experiment's ConfigDict (section `model`).

    Raises:
      ValueError: as `get_shape`.
    """
    _write_shape(config, get_shape(size))


def _write_shape(config: Any, shape: Shape) -> None:
    config.model.d_model = shape.d_model
    config.model.num_layers = shape.num_layers
    config.model.num_attention_heads = shape.num_attention_heads
    config.model.d_ff_multiple = shape.d_ff_multiple
    config.model.vocab_size = shape.vocab_size
    config.model.rope_theta = 10_000.0
    config.model.norm_eps = 1e-5


def apply_recipe(config: Any, name: str) -> None:
    """Writes a recipe into an experiment's ConfigDict (sections `data`, `optimizer`, `train`).

    A recipe for bytes also gives every head its own unembedding, and leaves the size of the vocabulary to the
    tokenizer: apply it after the shape. One that ends inside its warm-up (samsum) gets a learning-rate schedule that is
    longer than the run, and so ends as far up as the steps take it.

    Raises:
      ValueError: as `get_recipe`.
    """
    _write_recipe(config, get_recipe(name))


def _write_recipe(config: Any, recipe: Recipe) -> None:
    config.data.batch_size = recipe.batch_size
    config.data.seq_len = recipe.seq_len
    config.optimizer.learning_rate = recipe.learning_rate
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = recipe.warmup_steps
    config.optimizer.decay_ratio = recipe.decay_ratio
    # A schedule has to outlast its warm-up; None: it is as long as the run.
    config.optimizer.schedule_steps = None if recipe.warmup_steps < recipe.num_steps else recipe.warmup_steps + 1
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = recipe.clip_norm
    config.train.num_steps = recipe.num_steps
    if recipe.byte_level:
        config.model.unembedding = "replicated"
        config.model.vocab_size = None


def apply_looped(config: Any, size: str, loops: int = 4) -> None:
    """Writes a looped model's shape and the recipe of the source's scaling runs into an experiment's ConfigDict.

    That is Stage I on 20 billion tokens, with beta 0.1. (The source's own 1.4B model has 3 trillion with 8 loops and
    beta 0.1, then as many with 4 loops and 0.05.)

    Args:
      config: is changed.
      size: such as "374m"; see `LOOPED_SHAPES`.
      loops: T_m, times that the trunk is run.

    Raises:
      ValueError: there is none of that name; the nearest is suggested.
    """
    check_choice("size", size.lower(), LOOPED_SHAPES)
    _write_shape(config, LOOPED_SHAPES[size.lower()])
    _write_recipe(config, LOOPED_RECIPE)
    config.model.num_heads = 1
    config.model.head_kind = "medusa"  # head 1 has no layer of its own: all layers are looped, as in the source
    config.model.trunk_kind = "looped"
    config.model.loops = loops
    config.model.sandwich_norm = True
    config.objective.exit_entropy = 0.1  # and 0.05 later on: see experiments/looped.py
    config.optimizer.schedule = "constant"
