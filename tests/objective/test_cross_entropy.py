"""The fused loss against the naive one: log_softmax of all logits, differentiated by jax."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from mtp_jax.model import Execution
from mtp_jax.objective import mtp_cross_entropy, mtp_evaluate, num_chunks
from mtp_jax.parallel import LOGICAL_AXES, Layout, make_mesh, use_layout
from mtp_jax.planning.hlo import traffic
from tests.small_model import QUICK, assert_trees_close, equations, largest_array

ROLLED = Execution(unroll=False)


@dataclasses.dataclass(frozen=True)
class Case:
    """Arrays of a loss, and the numbers that are fixed at trace time."""

    h: jax.Array
    unembedding: jax.Array
    targets: jax.Array
    mask: jax.Array
    scale: jax.Array
    vocab_size: int

    @property
    def arrays(self):
        return self.h, self.unembedding, self.targets, self.mask, self.scale


def make_case(N=2, B=2, L=7, D=3, V=8, vocab_size=6, replicated=False, mask="some", scale=None, seed=0,
              dtype="float64"):
    """Makes a case; mask: "some", "all", "none", or "segments" as `multi_token_targets` makes it for documents of 3."""
    random = np.random.default_rng(seed)
    masks = {"some": random.random((N, B, L)) < 0.6, "all": np.ones((N, B, L), bool), "none": np.zeros((N, B, L), bool),
             "segments": np.asarray([[[i % 3 + k + 1 < 3 for i in range(L)]] * B for k in range(N)])}
    scale = random.uniform(0.1, 2, N) if scale is None else scale
    return Case(jnp.asarray(random.normal(size=(N, B, L, D)), dtype),
                jnp.asarray(2 * random.normal(size=(N, V, D) if replicated else (V, D)), dtype),
                jnp.asarray(random.integers(0, vocab_size, (N, B, L)), jnp.int32), jnp.asarray(masks[mask]),
                jnp.asarray(scale, dtype), vocab_size)


def naive_loss(h, unembedding, targets, mask, scale, vocab_size):
    """Returns (loss, (sums of loss, count and correct a head, predictions))."""
    matrices = unembedding[..., :vocab_size, :]
    logits_NxBxLxV = jnp.einsum("nbld,nvd->nblv" if unembedding.ndim == 3 else "nbld,vd->nblv", h, matrices)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits_NxBxLxV), targets[..., None], axis=-1)[..., 0]
    predictions = jnp.argmax(logits_NxBxLxV, axis=-1)
    loss_N = -jnp.sum(jnp.where(mask, chosen, 0), axis=(1, 2))
    correct_N = jnp.sum(mask & (predictions == targets), axis=(1, 2))
    return jnp.sum(loss_N * scale), ((loss_N, jnp.sum(mask, axis=(1, 2)), correct_N), predictions)


def naive(case):
    """Returns (loss, sums, gradients, predictions)."""
    function = jax.value_and_grad(functools.partial(naive_loss, vocab_size=case.vocab_size), (0, 1), has_aux=True)
    (loss, (sums, predictions)), gradients = jax.jit(function, compiler_options=QUICK)(*case.arrays)
    return loss, sums, gradients, predictions


def fused(case, chunks=1, execution=ROLLED, jit=True):
    """Returns (loss, sums, gradients)."""
    function = jax.value_and_grad(functools.partial(mtp_cross_entropy, vocab_size=case.vocab_size, chunks=chunks,
                                                    execution=execution), (0, 1), has_aux=True)
    (loss, sums), gradients = (jax.jit(function, compiler_options=QUICK) if jit else function)(*case.arrays)
    return loss, (sums.loss_N, sums.count_N, sums.correct_N), gradients


SKIPPING = Execution(unroll=False, skip_idle_heads=True)
CASES = {
    "one head": ({"N": 1}, {}),
    "one head, chunks": ({"N": 1, "mask": "all"}, {"chunks": 3}),
    "two heads": ({"mask": "segments"}, {"chunks": 2}),
    "four heads": ({"N": 4, "mask": "segments"}, {"chunks": 3}),
    "eight heads": ({"N": 8, "mask": "segments", "B": 1, "L": 10}, {"chunks": 2}),
    "a chunk a position": ({"L": 5}, {"chunks": 5}),
    "no padding of the vocabulary": ({"vocab_size": 8}, {"chunks": 2}),
    "replicated": ({"replicated": True}, {"chunks": 2}),
    "replicated, unrolled": ({"replicated": True}, {"chunks": 3, "execution": Execution()}),
    "unrolled": ({"N": 4}, {"execution": Execution()}),
    "abreast": ({"N": 4}, {"chunks": 2, "execution": Execution(heads_abreast=4)}),
    "two abreast": ({"N": 4}, {"chunks": 2, "execution": Execution(unroll=False, heads_abreast=2)}),
    "two abreast, replicated": ({"N": 4, "replicated": True}, {"execution": Execution(heads_abreast=2)}),
    "heads without weight": ({"N": 4, "scale": (0.5, 0, 2, 0)}, {}),
    "idle heads": ({"N": 4, "scale": (0.5, 0, 2, 0)}, {"chunks": 2, "execution": SKIPPING}),
    "idle heads, replicated": ({"N": 4, "scale": (0, 0, 2, 0), "replicated": True}, {"execution": SKIPPING}),
    "idle heads abreast": ({"scale": (0, 2)}, {"execution": Execution(skip_idle_heads=True, heads_abreast=2)}),
    "no target at all": ({"mask": "none"}, {"chunks": 2}),
    "one position": ({"L": 1, "B": 1, "mask": "all"}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_naive_loss(name, x64):
    changes, options = CASES[name]
    case = make_case(**changes)
    loss, sums, gradients = fused(case, **options)
    want_loss, want_sums, want_gradients, _ = naive(case)
    if options.get("execution", ROLLED).skip_idle_heads:
        want_sums = jax.tree.map(lambda x: jnp.where(case.scale > 0, x, 0), want_sums)
    assert_trees_close((loss, sums, gradients), (want_loss, want_sums, want_gradients), 1e-12)


@given(st.data())
@settings(max_examples=8)
def test_equals_the_naive_loss_whatever_the_shape(data):
    N, B, L = (data.draw(st.integers(1, top)) for top in (4, 2, 6))
    V = data.draw(st.integers(1, 5))
    scale = data.draw(st.lists(st.sampled_from([0.0, 0.3, 2.0]), min_size=N, max_size=N))
    execution = Execution(unroll=False, skip_idle_heads=data.draw(st.booleans()),
                          heads_abreast=data.draw(st.sampled_from([k for k in (1, 2, 4) if N % k == 0])))
    with jax.enable_x64(True):
        case = make_case(N, B, L, 2, V, data.draw(st.integers(1, V)), data.draw(st.booleans()), scale=scale,
                         seed=data.draw(st.integers(0, 99)))
        loss, _, gradients = fused(case, data.draw(st.integers(1, L)), execution)
        want_loss, _, want_gradients, _ = naive(case)
        assert_trees_close((loss, gradients), (want_loss, want_gradients), 1e-12)


@pytest.mark.parametrize("execution", [ROLLED, SKIPPING], ids=["all heads", "skipping"])
def test_the_same_without_jit(execution, x64):
    case = make_case(L=3, scale=(0.5, 1.5))
    with jax.disable_jit():
        got = fused(case, 2, execution, jit=False)
    assert_trees_close(got, fused(case, 2, execution), 1e-14)


def test_fp32_is_near_fp64(x64):
    case = make_case(N=2, B=2, L=64, D=32, V=256, vocab_size=250, mask="all", scale=(1 / 128, 1 / 128))
    narrow = dataclasses.replace(case, **{name: getattr(case, name).astype("float32")
                                          for name in ("h", "unembedding", "scale")})
    loss, sums, gradients = fused(narrow, chunks=4)
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, sums, gradients))} == {jnp.dtype("float32")}
    want_loss, _, want_gradients, _ = naive(case)
    assert abs(loss - want_loss) < 1e-6 * want_loss
    for got, want in zip(gradients, want_gradients):
        assert jnp.linalg.norm(got - want) < 1e-6 * jnp.linalg.norm(want)


def test_bf16_states_give_fp32_sums():
    case = make_case(L=16, D=8, dtype="float32")
    loss, sums, (h, unembedding) = fused(dataclasses.replace(case, h=case.h.astype("bfloat16")), chunks=2)
    assert loss.dtype == jnp.float32 and {x.dtype for x in sums} == {jnp.dtype("float32")}
    assert h.dtype == jnp.bfloat16 and unembedding.dtype == jnp.float32
    want_loss, _, want_gradients, _ = naive(case)
    assert abs(loss - want_loss) < 0.01 * want_loss
    for got, want in zip((h, unembedding), want_gradients):
        assert jnp.linalg.norm(got.astype("float32") - want) < 0.03 * jnp.linalg.norm(want)


def test_gradients_against_differences(x64):
    case = make_case(N=2, B=1, L=4)
    check_grads(lambda h, unembedding: mtp_cross_entropy(h, unembedding, *case.arrays[2:], vocab_size=6, chunks=3,
                                                         execution=ROLLED)[0], case.arrays[:2], order=1, modes=["rev"])


def test_the_gradient_is_that_of_any_function_of_the_loss(x64):
    case = make_case()
    function = jax.grad(lambda h, matrix, loss: loss(h, matrix, *case.arrays[2:], vocab_size=6)[0] ** 2, (0, 1))
    assert_trees_close(function(*case.arrays[:2], mtp_cross_entropy), function(*case.arrays[:2], naive_loss), 1e-11)


def test_sums_and_scale_carry_no_gradient(x64):
    case = make_case()
    by_sums = jax.grad(lambda h: mtp_cross_entropy(h, *case.arrays[1:], vocab_size=6)[1].loss_N.sum())(case.h)
    by_scale = jax.grad(lambda s: mtp_cross_entropy(*case.arrays[:4], s, vocab_size=6)[0])(case.scale)
    assert not jnp.any(by_sums) and not jnp.any(by_scale)


def test_heads_without_any_target_leave_the_others_alone(x64):
    case = make_case(N=3, mask="all")
    case = dataclasses.replace(case, mask=case.mask.at[1].set(False))
    loss, (loss_N, count_N, _), (h, unembedding) = fused(case, chunks=2)
    assert jnp.isfinite(loss) and jnp.all(jnp.isfinite(h)) and jnp.all(jnp.isfinite(unembedding))
    assert count_N.tolist() == [14, 0, 14] and loss_N[1] == 0
    assert not jnp.any(h[1]) and jnp.all(jnp.any(h[jnp.asarray([0, 2])], axis=-1))


def test_the_padding_of_the_vocabulary_gets_no_gradient_and_no_say(x64):
    case = make_case()
    loud = dataclasses.replace(case, unembedding=case.unembedding.at[6:].set(1e6))
    got, want = (fused(c, chunks=2) for c in (loud, case))
    assert_trees_close(got, want, 0)
    assert not jnp.any(got[2][1][6:]) and jnp.all(jnp.any(got[2][1][:6], axis=-1))


def test_large_logits_do_not_overflow(x64):
    case = make_case()
    case = dataclasses.replace(case, h=case.h * 1e4)
    loss, sums, gradients = fused(case)
    assert_trees_close((loss, sums, gradients), naive(case)[:3], 1e-12)


@pytest.mark.parametrize("replicated, chunks, execution", [
    (False, 1, ROLLED), (False, 3, Execution()), (True, 2, SKIPPING), (False, 2, Execution(heads_abreast=2))])
def test_evaluation(replicated, chunks, execution, x64):
    case = make_case(N=2, replicated=replicated)
    active = jnp.asarray([True, not execution.skip_idle_heads])
    sums, predictions = jax.jit(functools.partial(mtp_evaluate, vocab_size=6, chunks=chunks, execution=execution),
                                compiler_options=QUICK)(*case.arrays[:4], active)
    _, want, _, want_predictions = naive(case)
    keep = active if execution.skip_idle_heads else jnp.ones(2, bool)
    assert predictions.dtype == jnp.int32
    np.testing.assert_array_equal(predictions[keep], want_predictions[keep])
    assert_trees_close((sums.loss_N, sums.count_N, sums.correct_N),
                       jax.tree.map(lambda x: jnp.where(keep, x, 0), want), 1e-12)


SHAPE = {"N": 4, "B": 2, "L": 12, "D": 4, "V": 40, "vocab_size": 37}
BLV, NAIVE = 2 * 12 * 40, 4 * 2 * 12 * 37  # elements of one head's logits, and of all heads' without padding


@pytest.mark.parametrize("execution", [ROLLED, Execution(), SKIPPING], ids=["rolled", "unrolled", "skipping"])
@pytest.mark.parametrize("replicated", [False, True])
def test_no_array_of_all_logits_is_ever_formed(execution, replicated):
    case = make_case(**SHAPE, replicated=replicated, dtype="float32")

    def largest(chunks):
        return largest_array(jax.grad(lambda h, u: mtp_cross_entropy(
            h, u, *case.arrays[2:], vocab_size=37, chunks=chunks, execution=execution)[0], (0, 1)), *case.arrays[:2])

    assert largest(1) == BLV
    assert largest(3) < BLV and largest(4) < BLV
    assert largest(12) <= max(case.h.size, case.unembedding.size)
    assert largest_array(jax.grad(lambda h, u: naive_loss(h, u, *case.arrays[2:], 37)[0], (0, 1)),
                         *case.arrays[:2]) == NAIVE


def matmuls(function, *args):
    """Returns how many matmuls a function holds, those of a loop's body counted once."""
    return sum(e.primitive.name == "dot_general" for e in equations(jax.make_jaxpr(function)(*args).jaxpr))


def test_logits_are_computed_once_and_without_differentiation_no_gradient_is_formed():
    case = make_case(**SHAPE, dtype="float32")

    def loss(h, u):
        return mtp_cross_entropy(h, u, *case.arrays[2:], vocab_size=37, chunks=3, execution=ROLLED)[0]

    assert matmuls(loss, *case.arrays[:2]) == 1
    assert matmuls(jax.grad(loss, (0, 1)), *case.arrays[:2]) == 3  # logits, gradient of h, gradient of the matrix
    assert matmuls(lambda h, u: mtp_evaluate(h, u, *case.arrays[2:], vocab_size=37, chunks=3, execution=ROLLED),
                   *case.arrays[:2]) == 1


@pytest.mark.parametrize("mesh, length, execution", [
    pytest.param("data:2,fsdp:4", "fsdp", ROLLED, id="rows and length"),
    pytest.param("data:4,pred_heads:2", None, Execution(heads_abreast=2, heads_axis="pred_heads"), id="heads")])
def test_split_over_devices_equals_whole(mesh, length, execution, x64):
    """Rows and a strided length need no collective for the states; nor do heads: only sums travel."""
    case = make_case(N=4, B=4, L=8, D=4)
    rules = {name: None for name in LOGICAL_AXES} | {"batch": "data", "length": length, "pred_heads": "pred_heads"}
    layout = Layout.create(make_mesh(mesh), list(rules.items()))
    axes = ("pred_heads", "batch", "length")
    arrays = [jax.device_put(x, layout.sharding(names, x.shape)) for x, names in zip(
        case.arrays, ((*axes, None), (None, None), axes, axes, axes[:1]))]
    function = jax.jit(jax.value_and_grad(functools.partial(mtp_cross_entropy, vocab_size=6, chunks=2,
                                                            execution=execution), (0, 1), has_aux=True))
    with use_layout(layout):
        compiled = function.lower(*arrays).compile()
    (loss, sums), gradients = compiled(*arrays)
    assert_trees_close((loss, (sums.loss_N, sums.count_N, sums.correct_N), gradients), naive(case)[:3], 1e-12)
    text = compiled.as_text()
    assert "all-reduce" in text
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text, collective


@pytest.mark.parametrize("replicated", [False, True])
def test_devices_exchange_the_gradient_of_the_unembedding_once(replicated):
    """Not once a chunk of a head: of two heads in four chunks each that would be eight times."""
    case = make_case(N=2, B=4, L=16, D=8, V=64, replicated=replicated, dtype="float32")
    rules = {name: None for name in LOGICAL_AXES} | {"batch": "fsdp", "embed": "fsdp"}
    layout = Layout.create(make_mesh("fsdp:4", jax.devices()[:4]), list(rules.items()))
    rows, matrix = (None, "batch", "length"), (*(None,) * replicated, "vocab", "embed")
    arrays = [jax.device_put(x, layout.sharding(names, x.shape)) for x, names in zip(
        case.arrays, ((*rows, None), matrix, rows, rows, (None,)))]
    function = jax.jit(jax.grad(functools.partial(mtp_cross_entropy, vocab_size=64, chunks=4, execution=ROLLED), 1,
                                has_aux=True))
    with use_layout(layout):
        text = function.lower(*arrays).compile().as_text()
    sent = traffic(text, 4).by_kind()
    reduced = sum(sent.get(kind, {"bytes": 0})["bytes"] for kind in ("all-reduce", "reduce-scatter"))
    size = arrays[1].size * 4
    assert size <= reduced < 1.1 * size + 1000


@pytest.mark.parametrize("arguments, want", [
    ((1, 1024, 32_768, 2**26), 2), ((8, 1024, 32_768, 2**26), 16), ((1, 16, 11, 2**26), 1), ((1, 16, 11, 1), 16),
    ((3, 100, 7, 8400), 1), ((3, 100, 7, 8399), 2)])
def test_number_of_chunks(arguments, want):
    assert num_chunks(*arguments) == want
    rows, length, vocab, limit = arguments
    assert rows * -(-length // want) * vocab * 4 <= limit or want == length or length % want
