"""FLOP counts against a count by hand and against XLA's own, and the table of peaks."""

import jax
import jax.numpy as jnp
import pytest

from mtp_jax.config import ModelConfig
from mtp_jax.training import flops

MODEL = ModelConfig(num_heads=2, num_layers=4, d_model=64, num_attention_heads=4, num_kv_heads=2, head_dim=16,
                    d_ff=192, vocab_size=259)


def test_layer_by_hand():
    # query 64 x 64, key and value 64 x 32 each, output 64 x 64, three MLP matrices 64 x 192: two FLOPs an entry;
    # scores and values: 4 heads x 16 wide x 2 FLOPs, each over half of 100 tokens.
    weights = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 192)
    assert flops.layer_flops(MODEL, seq_len=100) == weights + 2 * (2 * 4 * 16 * 50)
    assert flops.layer_flops(MODEL, seq_len=100, executed=True) == weights + 2 * (2 * 4 * 16 * 100)


def test_model_by_hand():
    layer = flops.layer_flops(MODEL, seq_len=100)
    forward = flops.forward_flops(MODEL, seq_len=100, trunk_layers=2, head_flops=layer)
    assert forward == 4 * layer + 2 * (2 * 64 * 259)  # each of two heads has its own unembedding product
    assert flops.train_flops(MODEL, seq_len=100, trunk_layers=2, head_flops=layer) == 3 * forward
    linear = flops.forward_flops(MODEL, seq_len=100, trunk_layers=4, head_flops=2 * 64 * 64)
    assert linear == 4 * layer + 2 * (2 * 64 * 64) + 2 * (2 * 64 * 259)
    from_the_second = flops.forward_flops(MODEL, seq_len=100, trunk_layers=4, head_flops=2 * 64 * 64, own_heads=1)
    assert linear - from_the_second == 2 * 64 * 64  # head 1 has its unembedding alone
    executed = flops.forward_flops(MODEL, seq_len=100, trunk_layers=2, head_flops=0, executed=True)
    assert executed == 2 * flops.layer_flops(MODEL, seq_len=100, executed=True) + 2 * (2 * 64 * 384)  # padded to 128


def test_unresolved_vocabulary_is_refused():
    with pytest.raises(ValueError, match="model.vocab_size=None.*tokenizer"):
        flops.forward_flops(ModelConfig(), seq_len=8, trunk_layers=2, head_flops=0)


def parameters(model, *, layers):
    """Returns the weights of a plain model as a dict of lists, one entry a layer, all 0.01."""
    d, a, k, c, f = (model.d_model, model.num_attention_heads, model.kv_heads, model.attention_head_dim, model.mlp_dim)
    shapes = {"query": (d, a, c), "key": (d, k, c), "value": (d, k, c), "out": (a, c, d), "gate": (d, f), "up": (d, f),
              "down": (f, d)}
    return {"embedding": jnp.full((model.padded_vocab_size, d), 0.01),
            "unembedding": jnp.full((model.padded_vocab_size, d), 0.01),
            "layers": [{name: jnp.full(shape, 0.01) for name, shape in shapes.items()} for _ in range(layers)]}


def plain_layer(weights, h_BxLxD):
    """One layer without norms and softmax, whose elementwise work would blur the count of matmuls."""
    q = jnp.einsum("bld,dac->blac", h_BxLxD, weights["query"])
    k = jnp.einsum("bld,dkc->blkc", h_BxLxD, weights["key"])
    v = jnp.einsum("bld,dkc->blkc", h_BxLxD, weights["value"])
    group = q.shape[2] // k.shape[2]
    scores = jnp.einsum("blac,bmac->balm", q, jnp.repeat(k, group, axis=2))
    mixed = jnp.einsum("balm,bmac->blac", scores, jnp.repeat(v, group, axis=2))
    h_BxLxD = h_BxLxD + jnp.einsum("blac,acd->bld", mixed, weights["out"])
    return h_BxLxD + ((h_BxLxD @ weights["gate"]) * (h_BxLxD @ weights["up"])) @ weights["down"]


def plain_loss(weights, tokens_BxL, *, num_heads):
    """Sum of the logits of all heads, each a layer on the trunk's output; unrolled."""
    h = weights["embedding"][tokens_BxL]
    for layer in weights["layers"][:-num_heads]:
        h = plain_layer(layer, h)
    # Squared, so that the gradient of the logits is an array that XLA must multiply with, not a constant.
    return sum(jnp.sum(jnp.square(plain_layer(layer, h) @ weights["unembedding"].T))
               for layer in weights["layers"][-num_heads:])


@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": None, "num_heads": 1, "d_ff": 320}, {"vocab_size": 1000}])
def test_executed_count_is_that_of_xla(changes):
    model = ModelConfig(**{**{f: getattr(MODEL, f) for f in MODEL.__dataclass_fields__}, **changes})
    tokens = jnp.zeros((2, 128), jnp.int32)
    weights = parameters(model, layers=model.num_layers)

    def loss(weights, tokens):
        return plain_loss(weights, tokens, num_heads=model.num_heads)

    def cost(function):
        return jax.jit(function).lower(weights, tokens).compile().cost_analysis()["flops"] / tokens.size

    shape = dict(seq_len=128, trunk_layers=model.num_layers - model.num_heads,
                 head_flops=flops.layer_flops(model, seq_len=128, executed=True), executed=True)
    # XLA also counts elementwise work: under one per cent here, always above the matmuls alone.
    assert 1.0 <= cost(loss) / flops.forward_flops(model, **shape) < 1.02
    assert 1.0 <= cost(jax.grad(loss)) / flops.train_flops(model, **shape) < 1.02


@pytest.mark.parametrize("kind, peak", [
    ("TPU v4", 275.0), ("TPU v5 lite", 197.0), ("TPU v5e", 197.0), ("TPU v5", 459.0), ("TPU v5p", 459.0),
    ("TPU v6 lite", 918.0), ("TPU v6e", 918.0), ("TPU7x", 1153.5), ("NVIDIA A100-SXM4-80GB", 312.0),
    ("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H100 NVL", 835.0), ("NVIDIA H200", 989.0),
    ("cpu", None), ("NVIDIA GeForce RTX 4090", None), ("TPU v9", None)])
def test_peak(kind, peak):
    assert flops.peak_tflops(kind) == peak


def test_mfu():
    assert flops.mfu(98.5, device_kind="TPU v5 lite") == pytest.approx(0.5)
    assert flops.mfu(1.0, device_kind="cpu") is None
    assert flops.mfu(1.0, device_kind="cpu", configured_peak=4.0) == 0.25
    assert flops.mfu(98.5, device_kind="TPU v5 lite", configured_peak=394.0) == 0.25
