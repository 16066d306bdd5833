"""Every primitive against its plain formula: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mtp_jax.config import ParallelConfig
from mtp_jax.model.primitives import RotaryScaling, outer_sum, project, rms_norm, rotary, rotary_tables, swiglu
from mtp_jax.parallel import Layout, make_mesh, use_layout

B, L, D, A, C = 2, 8, 6, 3, 4
TOLERANCE = {"float64": 1e-13, "float32": 2e-6}


def normal(*shape, dtype="float64", seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def assert_same(function, plain, *args, tolerance):
    """Compares values, and the gradients of a sum whose terms all differ in weight."""
    def total(f):
        def g(*args):
            y = f(*args)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)), y
        return jax.jit(jax.value_and_grad(g, argnums=tuple(range(len(args))), has_aux=True))(*args)

    for got, want in zip(jax.tree.leaves(total(function)), jax.tree.leaves(total(plain)), strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * float(1 + jnp.max(jnp.abs(want))))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_project_is_the_einsum(x64, dtype):
    x, w = normal(B, L, D, dtype=dtype), normal(D, A, C, dtype=dtype, seed=1)
    assert_same(project, lambda x, w: jnp.einsum("bld,dac->blac", x, w), x, w, tolerance=TOLERANCE[dtype])
    o, w = normal(B, L, A, C, dtype=dtype), normal(A, C, D, dtype=dtype, seed=1)
    assert_same(lambda o, w: project(o, w, inputs=2), lambda o, w: jnp.einsum("blac,acd->bld", o, w), o, w,
                tolerance=TOLERANCE[dtype])


def test_project_computes_in_the_dtype_of_the_states():
    x, w = normal(B, L, D, dtype="bfloat16"), normal(D, D, dtype="float32")
    assert project(x, w).dtype == jnp.bfloat16
    assert project(x, w, preferred_element_type=jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outer_sum_is_the_einsum(x64, dtype):
    x, y = normal(B, L, D, dtype=dtype), normal(B, L, A, dtype=dtype, seed=1)
    assert_same(outer_sum, lambda x, y: jnp.einsum("bld,blf->df", x, y), x, y, tolerance=TOLERANCE[dtype])


def test_split_length_moves_no_token(x64):
    rules = [(name, "tensor" if name == "length" else "data" if name == "batch" else None)
             for name, _ in ParallelConfig().rules]
    layout = Layout.create(make_mesh("data:2,tensor:4"), rules)
    x, w = normal(2 * B, L, D), normal(D, A, C, seed=1)  # two rows a device: B and L merged would interleave

    def run(x, w):
        with use_layout(layout):
            y, back = jax.vjp(project, x, w)
            return y, back(y), outer_sum(x, x)

    rows = layout.sharding(("batch", "length", None))
    whole = layout.replicated
    compiled = jax.jit(run, in_shardings=(rows, whole)).lower(x, w).compile()
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text
    np.testing.assert_allclose(compiled(jax.device_put(x, rows), w)[0], jnp.einsum("bld,dac->blac", x, w), rtol=1e-13,
                               atol=1e-13)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rms_norm(x64, dtype):
    x, scale = normal(B, L, D, dtype=dtype), normal(D, dtype=dtype, seed=1)

    def plain(x, scale):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale[None, None]

    assert_same(lambda x, scale: rms_norm(x, scale, 1e-5), plain, x, scale, tolerance=TOLERANCE[dtype])


def test_rms_norm_has_fp32_statistics():
    x = jnp.full((1, 4096), 300.0, jnp.float16)  # the square is no fp16 number
    np.testing.assert_allclose(rms_norm(x, jnp.ones(4096, jnp.float16), 1e-5), 1, rtol=1e-3)
    assert rms_norm(x, jnp.ones(4096), 1e-5).dtype == jnp.float16


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rotary_turns_pairs_as_complex_numbers(x64, dtype):
    x, positions = normal(B, L, A, C, dtype=dtype), jnp.asarray(np.random.default_rng(1).integers(0, 50, (B, L)))
    cos_BxLxC, sin_BxLxC = rotary_tables(positions, C, theta=100.0, dtype=dtype)

    def plain(x):
        angle = positions[:, :, None, None] * 100.0 ** (-jnp.arange(0, C, 2) / C).reshape(1, 1, 1, -1)
        first, second = x[..., :C // 2], x[..., C // 2:]
        return jnp.concatenate([first * jnp.cos(angle) - second * jnp.sin(angle),
                                second * jnp.cos(angle) + first * jnp.sin(angle)], -1).astype(dtype)

    # In fp32 an angle of up to 50 radians is itself off by up to 4e-6.
    assert_same(lambda x: rotary(x, cos_BxLxC, sin_BxLxC), plain, x, tolerance=4 * TOLERANCE[dtype])


def test_rotary_makes_scores_depend_on_distance_only(x64):
    q, k = normal(1, 1, 1, C), normal(1, 1, 1, C, seed=1)

    def score(i, j):
        turned = [rotary(x, *rotary_tables(jnp.full((1, 1), at), C, theta=100.0, dtype=jnp.float64))
                  for x, at in ((q, i), (k, j))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert abs(score(7, 3) - score(24, 20)) < 1e-12
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_rotary_scaling_slows_all_angles_or_the_long_waves(x64):
    """Llama 3's by its definition, wave by wave: of 64 tokens of old context, waves beyond 64 / 1 and below 64 / 4."""
    frequency = 100.0 ** (-np.arange(0, 16, 2) / 16)
    want = []
    for f in frequency:
        wave = 2 * np.pi / f
        smooth = (64 / wave - 1.0) / (4.0 - 1.0)
        want.append(f / 8 if wave > 64 else f if wave < 16 else (1 - smooth) * f / 8 + smooth * f)
    changed = np.array(want) / frequency
    assert changed[0] == 1 and changed[-1] == 1 / 8 and np.any((changed > 1 / 8) & (changed < 1))
    frequency_C = jnp.asarray(frequency)
    np.testing.assert_allclose(RotaryScaling("llama3", 8.0, 1.0, 4.0, 64)(frequency_C), want, rtol=1e-13)
    np.testing.assert_allclose(RotaryScaling("linear", 8.0)(frequency_C), frequency / 8, rtol=1e-13)
    np.testing.assert_array_equal(RotaryScaling()(frequency_C), frequency)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_swiglu(x64, dtype):
    gate, up = 3 * normal(B, L, D, dtype=dtype), normal(B, L, D, dtype=dtype, seed=1)
    assert_same(swiglu, lambda gate, up: jax.nn.silu(gate) * up, gate, up, tolerance=TOLERANCE[dtype])


def test_swiglu_of_large_inputs_and_twice(x64):
    gate = jnp.asarray([-1e3, -50.0, 0.0, 50.0, 1e3])
    value, (dgate, dup) = jax.value_and_grad(lambda g, u: jnp.sum(swiglu(g, u)), argnums=(0, 1))(gate, jnp.ones(5))
    assert np.all(np.isfinite([*dgate, *dup, value]))
    np.testing.assert_allclose(dgate, [0, 0, 0.5, 1, 1], atol=1e-12)
    check_grads(swiglu, (normal(3), normal(3, seed=1)), order=2, modes=["rev"])
