"""Every attention kernel against a loop over rows, heads and documents; the choice of a kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mtp_jax.config import ParallelConfig
from mtp_jax.model import blocked as module
from mtp_jax.model.attention import KERNELS, attention, resolve_kernel
from mtp_jax.parallel import Layout, make_mesh, use_layout

B, L, A, K, C = 2, 24, 4, 2, 8
PORTABLE = ("xla", "blocked")
TOLERANCE = {"float64": 1e-13, "float32": 3e-6, "bfloat16": 4e-2}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Cuts a short row into several blocks, the last one shorter."""
    monkeypatch.setattr(module, "MIN_BLOCK", 5)


def make_inputs(dtype="float64", length=L, kv_heads=K, seed=0):
    random = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(random.normal(size=(B, length, n, C)), dtype) for n in (A, kv_heads, kv_heads))
    segments = np.zeros((B, length), np.int32)
    segments[0, :length // 3], segments[0, length // 3:length - 3] = 1, 2  # two documents and padding
    segments[1] = 1
    return q, k, v, jnp.asarray(segments)


def plain(q, k, v, segments):
    """Attention one row, head and query at a time, in numpy."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, i, a in np.ndindex(q.shape[:3]):
        group = a // (q.shape[2] // k.shape[2])
        seen = [j for j in range(i + 1) if segments[b, j] == segments[b, i]]
        scores = np.array([q[b, i, a] @ k[b, j, group] for j in seen]) / np.sqrt(q.shape[3])
        weights = np.exp(scores - scores.max())
        out[b, i, a] = weights @ v[b, seen, group] / weights.sum()
    return out


def value_and_gradient(kernel, q, k, v, segments):
    """Returns the outputs and the gradient of a sum in which every output has a weight of its own."""
    def loss(q, k, v):
        o = attention(q, k, v, segments, segments, kernel=kernel)
        return jnp.sum(o * jnp.cos(jnp.arange(o.size, dtype=jnp.float32)).reshape(o.shape).astype(o.dtype)), o

    gradient, o = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return o, *gradient


def assert_close(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kv_heads", (1, 2, 4))
@pytest.mark.parametrize("kernel", PORTABLE)
def test_is_causal_attention_inside_documents(x64, kernel, kv_heads):
    inputs = make_inputs(kv_heads=kv_heads)
    o = jax.jit(lambda *x: attention(*x, inputs[3], kernel=kernel))(*inputs)
    np.testing.assert_allclose(o, plain(*inputs), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kernel", PORTABLE)
def test_gradient_is_that_of_the_values(x64, kernel):
    *qkv, segments = make_inputs(length=7)
    check_grads(jax.jit(lambda q, k, v: attention(q, k, v, segments, segments, kernel=kernel)), qkv, order=2,
                modes=["rev"])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("length", (1, 4, 5, 24))
def test_blocked_equals_xla(x64, dtype, length):
    inputs = make_inputs(dtype, length)
    assert_close(value_and_gradient("blocked", *inputs), value_and_gradient("xla", *inputs), TOLERANCE[dtype])


@pytest.mark.parametrize("kernel", PORTABLE)
def test_large_scores_stay_finite(kernel):
    q, k, v, segments = make_inputs("float32")
    outputs = value_and_gradient(kernel, 1e3 * q, 1e3 * k, v, segments)
    assert all(bool(jnp.all(jnp.isfinite(x))) for x in outputs)
    np.testing.assert_allclose(outputs[0][1, 0], np.repeat(v[1, 0], A // K, axis=0), rtol=1e-6)  # sees itself alone


def test_blocked_forms_no_array_of_all_pairs():
    q, k, v, segments = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in make_inputs("float32", length=160))

    def pairs(kernel):
        return "160x160x" in jax.jit(lambda *x: value_and_gradient(kernel, *x)).lower(q, k, v, segments).as_text()

    assert pairs("xla") and not pairs("blocked")


@pytest.mark.parametrize("length", (1, 64, 65, 1024, 4096, 100_000))
def test_cuts_cover_the_row_in_few_blocks(monkeypatch, length):
    monkeypatch.setattr(module, "MIN_BLOCK", 64)
    cuts = module._cuts(length, length)
    assert cuts[0][0] == 0 and cuts[-1][1] == length and len(cuts) <= 16
    assert all(keys == stop for _, stop, keys in cuts)
    assert all(before[1] == after[0] for before, after in zip(cuts, cuts[1:]))


@pytest.mark.parametrize("kernel", PORTABLE)
def test_runs_inside_checkpoint_scan_and_vmap_on_a_mesh(x64, kernel):
    layout = Layout.create(make_mesh("data:2,tensor:2,pred_heads:2"), ParallelConfig().rules)
    q, k, v, segments = make_inputs()
    stacked = [jnp.stack([x, 0.5 * x]) for x in (q, k, v)]

    def run(stacked, segments):
        def layer(carry, scale):
            q, k, v = carry
            return (attention(scale * q, k, v, segments, segments, kernel=kernel), k, v), None

        def heads(q, k, v):
            return jax.lax.scan(jax.checkpoint(layer), (q, k, v), jnp.ones(2))[0][0]

        with use_layout(layout):
            return jnp.sum(jax.vmap(heads, spmd_axis_name="pred_heads")(*stacked) ** 2)

    shardings = [layout.sharding(("pred_heads", "batch", "length", "heads", None))] * 3
    placed = [jax.device_put(x, s) for x, s in zip(stacked, shardings)]
    rows = jax.device_put(segments, layout.sharding(("batch", "length")))
    got = jax.jit(jax.grad(run))(placed, rows)
    want = jax.jit(jax.grad(lambda s: sum(
        jnp.sum(attention(attention(q, k, v, segments, segments), k, v, segments, segments) ** 2)
        for q, k, v in zip(*s))))(stacked)
    assert_close(got, want, 1e-12)


@pytest.mark.parametrize("platform, seq_len, head_dim, dtype, kernel", (
    ("cpu", 256, 32, "float32", "blocked"),
    ("gpu", 256, 64, "bfloat16", "cudnn"),
    ("cuda", 256, 64, "float16", "cudnn"),
    ("gpu", 256, 64, "float32", "xla"),
    ("gpu", 256, 20, "bfloat16", "xla"),
    ("gpu", 256, 256, "bfloat16", "xla"),
    ("gpu", 255, 64, "bfloat16", "xla"),
    ("rocm", 256, 64, "bfloat16", "xla"),
    ("tpu", 1024, 64, "bfloat16", "splash"),
    ("tpu", 1024, 64, "float32", "splash"),
    ("tpu", 1000, 64, "bfloat16", "xla"),
    ("abacus", 1024, 64, "bfloat16", "xla"),
))
def test_auto_chooses_by_platform(platform, seq_len, head_dim, dtype, kernel):
    assert resolve_kernel("auto", platform, seq_len=seq_len, head_dim=head_dim, dtype=dtype) == kernel


@pytest.mark.parametrize("platform, seq_len, parts, kernel", (
    ("tpu", 1024, 4, "splash"), ("tpu", 1024, 8, "xla"), ("tpu", 768, 2, "xla"), ("tpu", 768, 3, "splash"),
    ("gpu", 512, 4, "cudnn"), ("gpu", 12, 4, "xla"), ("cpu", 12, 4, "blocked")))
def test_auto_chooses_by_the_part_of_a_row(platform, seq_len, parts, kernel):
    """Splash wants 128 positions in each half of a part, cuDNN an even number in a part."""
    assert resolve_kernel("auto", platform, seq_len=seq_len, head_dim=64, dtype="bfloat16", parts=parts) == kernel
    wanted = {"tpu": "splash", "gpu": "cudnn", "cpu": "blocked"}[platform]
    if kernel != wanted:
        with pytest.raises(ValueError, match=f"{wanted}.*data.seq_len.*{seq_len}"):
            resolve_kernel(wanted, platform, seq_len=seq_len, head_dim=64, dtype="bfloat16", parts=parts)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", (1, 2, 4))
def test_cudnn_is_plain_attention_in_value_and_gradient(kv_heads):
    random = np.random.default_rng(0)
    q, k, v = (jnp.asarray(random.normal(size=(B, 256, heads, 64)), jnp.bfloat16) for heads in (A, kv_heads, kv_heads))
    segments = np.ones((B, 256), np.int32)
    segments[0, 100:], segments[1, -50:] = 2, 0
    got = value_and_gradient("cudnn", q, k, v, segments)
    want = value_and_gradient("xla", *(x.astype(jnp.float32) for x in (q, k, v)), segments)
    assert_close(got, want, 4e-2)


@pytest.mark.gpu
def test_a_gpu_runs_cudnn_unless_told_otherwise():
    assert resolve_kernel("auto", jax.devices()[0].platform, seq_len=256, head_dim=64, dtype="bfloat16") == "cudnn"


@pytest.mark.parametrize("name, platform, words", (
    ("blockd", "cpu", ("compute.attention='blockd'", '"blocked"')),
    ("splash", "cpu", ("compute.attention='splash'", "'cpu'", "xla")),
    ("cudnn", "tpu", ("compute.attention='cudnn'", "'tpu'", "xla")),
    ("cudnn", "gpu", ("model.dtype", "float32")),
    ("splash", "tpu", ("data.seq_len", "100")),
))
def test_names_that_cannot_run_are_refused(name, platform, words):
    with pytest.raises(ValueError) as error:
        resolve_kernel(name, platform, seq_len=100, head_dim=64)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_every_portable_name_is_kept():
    assert all(resolve_kernel(name, platform, seq_len=7, head_dim=6) == name
               for name in PORTABLE for platform in ("cpu", "gpu", "tpu"))
    assert set(KERNELS) == {*PORTABLE, "cudnn", "splash"}


def test_heads_that_share_no_kv_head_are_refused():
    q, k, v, segments = make_inputs("float32", kv_heads=3)
    with pytest.raises(ValueError, match="num_kv_heads=3"):
        attention(q, k, v, segments, segments, kernel="xla")

