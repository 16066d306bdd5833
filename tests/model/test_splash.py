"""The TPU kernel against plain attention: interpreted on CPU, and compiled for a TPU that is not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import ParallelConfig
from mtp_jax.model import splash
from mtp_jax.model.attention import attention
from mtp_jax.parallel import Layout, make_mesh
from tests.tpu_compiler import needs_tpu_compiler, run_with_tpu_compiler

B, A, C = 2, 4, 64


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernel's own program, block by block, in plain array code."""
    monkeypatch.setattr(splash, "INTERPRET", True)


def value_and_gradient(kernel, layout, length, kv_heads):
    """Returns outputs and gradients of queries, keys and values; every output has a weight of its own."""
    draw = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(draw.normal(size=(B, length, heads, C)), jnp.float32)
                        for heads in (A, kv_heads, kv_heads, A))
    segments = np.ones((B, length), np.int32)
    segments[0, 37:length // 2 + 50], segments[0, length // 2 + 50:] = 2, 3  # documents across blocks and devices
    segments[1, -70:] = 0

    def loss(q, k, v):
        o = attention(q, k, v, segments, segments, kernel=kernel, layout=layout)
        return jnp.sum(o * weights), o

    gradient, o = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return o, *gradient


@pytest.mark.parametrize("mesh, length, kv_heads", [
    (None, 256, 2),
    pytest.param(None, 128, 4, marks=pytest.mark.slow),
    ("data:2,tensor:2,pred_heads:2", 256, 2),
    ("sequence:2,tensor:4", 512, 4),
    pytest.param("data:2,sequence:4", 1024, 1, marks=pytest.mark.slow),
    pytest.param("data:2,sequence:2,tensor:2", 1024, 2, marks=pytest.mark.slow)])
def test_is_plain_attention_in_value_and_gradient(interpreted, mesh, length, kv_heads):
    layout = mesh and Layout.create(make_mesh(mesh), ParallelConfig().rules)
    got, want = (value_and_gradient(kernel, layout if kernel == "splash" else None, length, kv_heads)
                 for kernel in ("splash", "xla"))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("parts", (2, 3, 4, 8))
def test_every_part_of_a_row_has_the_same_work(parts):
    """In pairs of a query and a key that it sees; and every query lies on one device."""
    length = 12 * parts
    order = splash._order(length, parts)
    assert sorted(order) == list(range(length))
    assert len({int(np.sum(part + 1)) for part in order.reshape(parts, -1)}) == 1
    assert np.array_equal(splash._order(length, 1), np.arange(length))


COMPILE = """
import jax, jax.numpy as jnp, re
from mtp_jax.config import ParallelConfig
from mtp_jax.model.attention import attention
from mtp_jax.parallel import Layout, make_mesh, use_layout

COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter", "all-reduce")


def compiled(mesh, kernel, length):
    layout = Layout.create(make_mesh(mesh, tpu_devices("v5e:2x2")), ParallelConfig().rules)
    axes = ("pred_heads", "batch", "length", "heads", None)

    def shape(heads):
        return jax.ShapeDtypeStruct((2, 4, length, heads, 128), jnp.bfloat16, sharding=layout.sharding(axes))

    def loss(qkv, segments):
        with use_layout(layout):
            run = lambda q, k, v: attention(q, k, v, segments, segments, kernel=kernel)
            return jnp.sum(jax.vmap(run, spmd_axis_name="pred_heads")(*qkv).astype(jnp.float32) ** 2)

    segments = jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=layout.sharding(("batch", "length")))
    # The loss itself is a sum over devices: its value is not asked for.
    return jax.jit(jax.grad(loss)).lower([shape(4), shape(2), shape(2)], segments).compile()


def sent(program):
    return {(name, shape) for line in program.as_text().splitlines() for name in COLLECTIVES if f" {name}" in line
            for shape in re.findall(r"bf16\\[([\\d,]*)\\]", line.split(f" {name}")[0])}


splash, xla = compiled("data:2,pred_heads:2", "splash", 2048), compiled("data:2,pred_heads:2", "xla", 2048)
assert not sent(splash) and not sent(xla), (sent(splash), sent(xla))
assert splash.as_text().count("tpu_custom_call") >= 3 and "tpu_custom_call" not in xla.as_text()
assert splash.memory_analysis().temp_size_in_bytes < xla.memory_analysis().temp_size_in_bytes / 2
split = compiled("sequence:2,pred_heads:2", "splash", 2048)
assert split.as_text().count("tpu_custom_call") >= 3
# One of the heads abreast: keys and values of whole rows come in, half of a part of queries is swapped.
names = {name for name, _ in sent(split)}
sizes = {tuple(int(n) for n in shape.split(",") if n not in ("", "1")) for _, shape in sent(split)}
assert {"all-gather", "reduce-scatter", "collective-permute"} <= names and "all-to-all" not in names, names
assert sizes <= {(4, 2, 2048, 128), (4, 2, 1024, 128), (4, 4, 512, 128)}, sizes
print("compiled")
"""


@pytest.mark.slow
@needs_tpu_compiler
def test_compiles_for_a_tpu_and_sends_no_more_than_it_must():
    assert "compiled" in run_with_tpu_compiler(COMPILE)
