"""What a step sends between devices where positions are split: ids, keys and values, gradients, and no activation."""

import re

import jax
import pytest

from mtp_jax import config as configs
from mtp_jax.training.program import build_program

B, L, D, A, K, C, V = 4, 64, 72, 6, 2, 8, 496
MOVED = re.compile(r"= (.*?) (all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
SUMMED = re.compile(r"= (.*?) all-reduce(?:-start)?\(")
FLOATS = re.compile(r"(?:f32|bf16|f64)\[([\d,]*)\]")


def shapes(pattern, text):
    """Returns the shapes of floats that collectives of this pattern give, as a set of tuples without ones."""
    return {tuple(int(size) for size in shape.split(",") if size not in ("", "1"))
            for found in pattern.finditer(text) for shape in FLOATS.findall(found[1])}


def compiled(mesh, **compute):
    """Returns the text of a compiled step; every size is another number."""
    config = configs.from_dict({
        "model": dict(num_heads=2, num_layers=4, d_model=D, num_attention_heads=A, num_kv_heads=K, head_dim=C, d_ff=88,
                      vocab_size=V, vocab_multiple=V),
        "compute": dict(scan_layers=True, logits_bytes=V * 4 * 11, **compute),  # 3 chunks for parts of 16
        "data": dict(batch_size=B, seq_len=L), "optimizer": dict(warmup_steps=0), "train": dict(num_steps=2),
        "parallel": dict(mesh=mesh)})
    program = build_program(config)
    return program.train_step.lower(program.state, program.batch).compile().as_text()


@pytest.mark.parametrize("attention", ["blocked", pytest.param("xla", marks=pytest.mark.slow)])
def test_only_keys_and_values_are_gathered_over_sequence(attention):
    text = compiled("data:2,sequence:4", attention=attention)
    moved = shapes(MOVED, text)
    rows, part = B // 2, L // 4
    assert (rows, L, K, C) in moved  # gathered, forwards and again backwards
    assert moved <= {(rows, L, K, C), (rows, part, K, C)}  # ... and their gradient given back to its device
    # Sums over devices are of parameters, and nothing that has the positions of a row or a chunk.
    for shape in shapes(SUMMED, text):
        assert part not in shape[1:] or shape in ((rows, part, A, C), (rows, part, K, C)), shape
        assert L not in shape


def test_a_loss_without_chunks_would_be_seen():
    """The pattern finds what a contiguous cut of a split row costs."""
    layout = build_program(configs.from_dict({
        "model": dict(num_heads=1, num_layers=2, d_model=8, num_attention_heads=2, vocab_size=16, vocab_multiple=16),
        "data": dict(batch_size=B, seq_len=L), "optimizer": dict(warmup_steps=0), "train": dict(num_steps=2),
        "parallel": dict(mesh="data:2,sequence:4")})).layout
    sharding = layout.sharding(("batch", "length", None))
    x = jax.ShapeDtypeStruct((B, L, D), "float32", sharding=sharding)

    def chunks(x_BxLxD):
        return jax.lax.map(lambda x: x * x, x_BxLxD.reshape(B, 4, L // 4, D).swapaxes(0, 1)).sum()

    assert any(D in shape and (L in shape or L // 4 in shape)
               for shape in shapes(MOVED, jax.jit(chunks).lower(x).compile().as_text()))
