"""Matmul FLOPs of a model, and what share of a device's peak a run reaches (MFU).

One multiply-add is two FLOPs. Per token, with the letters of design (A query heads, K KV heads, C head width, F MLP
width, L tokens a row, V vocabulary, T trunk layers, N heads):

    layer      = 2 D C (A + 2 K)  +  2 A C D  +  6 D F  +  attention
    attention  = 2 A C L          scores and weighted values over the L / 2 tokens that a causal mask leaves on average
    forward    = T layer + M head + N 2 D V    of M of the N heads with parameters of their own; as often as a looped
                                               trunk is run, for the heads are read after every loop
    train step = 3 forward        the backward pass forms two products for each product of the forward pass

`head` is what one prediction head runs before its unembedding: a layer, or 2 D D for a linear head. The lookup of
the embedding multiplies nothing and is not counted, nor is the exit gate of a looped trunk, one number a token.
Recomputation (remat) is not counted either: these are the FLOPs that the model needs, not those that a setting spends.
Masks between packed documents are not taken off.

With `executed=True` the count is of what plain kernels run: attention over all L tokens, and the padded vocabulary.
"""

from __future__ import annotations

from mtp_jax.config import ModelConfig

# Peak TFLOP/s of dense bfloat16 matmuls of one JAX device, by the start of its `device_kind` in lower case. A chip of
# TPU v4 and v5p is one device; one of TPU7x, 2,307 TFLOP/s, is two. The first start that fits counts.
PEAK_TFLOPS = (
    ("tpu v4 lite", 138.0),
    ("tpu v4", 275.0),
    ("tpu v5 lite", 197.0),
    ("tpu v5e", 197.0),
    ("tpu v5", 459.0),  # v5p says "TPU v5" or "TPU v5p"
    ("tpu v6 lite", 918.0),
    ("tpu v6e", 918.0),
    ("tpu7x", 1153.5),
    ("nvidia a100", 312.0),
    ("nvidia h100 pcie", 756.0),
    ("nvidia h100 nvl", 835.0),
    ("nvidia h100", 989.0),
    ("nvidia h200 nvl", 835.0),
    ("nvidia h200", 989.0),
)


def layer_flops(model: ModelConfig, *, seq_len: int, executed: bool = False) -> int:
    """Returns the forward FLOPs per token of one transformer layer.

    Args:
      model: shape of the layer.
      seq_len: L, tokens a row.
      executed: count attention over the whole row, not the causal half.
    """
    d, c, f = model.d_model, model.attention_head_dim, model.mlp_dim
    a, k = model.num_attention_heads, model.kv_heads
    attention = 4 * a * c * seq_len if executed else 2 * a * c * seq_len
    return 2 * d * c * (a + 2 * k) + 2 * a * c * d + 6 * d * f + attention


def forward_flops(model: ModelConfig, *, seq_len: int, trunk_layers: int, head_flops: int,
                  own_heads: int | None = None, executed: bool = False) -> int:
    """Returns the forward FLOPs per token of the whole model: trunk, all heads, an unembedding for each.

    Args:
      model: shapes; `vocab_size` must be resolved.
      seq_len: L, tokens a row.
      trunk_layers: T; for head kinds made of a layer it is num_layers - num_heads + extra_trunk_layers.
      head_flops: FLOPs per token of one head before its unembedding: `layer_flops(...)`, or 2 D D for a linear head.
      own_heads: M, heads that have those FLOPs; None: all N.
      executed: count what plain kernels run, see the module.
    """
    if model.vocab_size is None:
        raise ValueError("model.vocab_size=None is not resolved yet: set it to the tokenizer's vocabulary size.")
    vocab = model.padded_vocab_size if executed else model.vocab_size
    trunk = trunk_layers * layer_flops(model, seq_len=seq_len, executed=executed)
    own_heads = model.num_heads if own_heads is None else own_heads
    return model.loops * (trunk + own_heads * head_flops + model.num_heads * 2 * model.d_model * vocab)


def train_flops(model: ModelConfig, *, seq_len: int, trunk_layers: int, head_flops: int,
                own_heads: int | None = None, executed: bool = False) -> int:
    """Returns the FLOPs per token of a training step, three times the forward pass; arguments as `forward_flops`."""
    return 3 * forward_flops(model, seq_len=seq_len, trunk_layers=trunk_layers, head_flops=head_flops,
                             own_heads=own_heads, executed=executed)


def peak_tflops(device_kind: str) -> float | None:
    """Returns the peak bfloat16 TFLOP/s of one device, or None where it is not known, as of a CPU.

    Args:
      device_kind: `jax.devices()[0].device_kind`, such as "TPU v5 lite" or "NVIDIA H100 80GB HBM3".
    """
    kind = device_kind.lower()
    return next((peak for start, peak in PEAK_TFLOPS if kind.startswith(start)), None)


def mfu(tflops_per_device: float, *, device_kind: str, configured_peak: float = 0.0) -> float | None:
    """Returns the share of the peak that is reached, in [0, 1], or None where the peak is not known.

    Args:
      tflops_per_device: TFLOP/s of one device, counted by `train_flops`.
      device_kind: see `peak_tflops`.
      configured_peak: `logging.peak_tflops`; above 0 it stands in for the table.
    """
    peak = configured_peak or peak_tflops(device_kind)
    return tflops_per_device / peak if peak else None
