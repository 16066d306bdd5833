"""Tables: what is written and read, and what is missing, too many, misshapen or no number."""

import numpy as np
import pytest

from mtp_jax.convert import head_one, hf
from mtp_jax.convert.safetensors_file import Info, Tensors
from mtp_jax.convert.table import check_covered, infos, reader, stream
from tests.convert.models import assert_same, make_arrays, make_config, make_model


class InMemory(Tensors):
    """Tensors that lie nowhere."""

    def __init__(self, tensors):
        super().__init__("there", {name: Info(t.shape, t.dtype) for name, t in tensors.items()}, {})
        object.__setattr__(self, "tensors", tensors)

    def read(self, name):
        return self.tensors[name]


def plain():
    """Returns a model with one head, whose table is complete."""
    config = make_config(num_heads=1, qk_norm=True)
    model = make_model(config)
    return config, model, hf.table(config)


def test_a_model_comes_back_bit_for_bit():
    config, model, entries = plain()
    tensors = dict(stream(model, entries, None))
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        name: (info.shape, info.dtype) for name, info in infos(model.leaves, entries, None).items()}
    read = reader(model.leaves, entries, InMemory(tensors))
    assert_same({path: read(path, ()) for path in model.leaves}, make_arrays(config))
    np.testing.assert_array_equal(read("trunk/mlp/up", (2,)), make_arrays(config)["trunk/mlp/up"][2])


def test_each_leaf_is_read_in_one_go():
    config, model, entries = plain()
    order = []
    object.__setattr__(model, "read", lambda path, index: order.append(path) or make_arrays(config)[path][index])
    list(stream(model, entries, None))
    assert len(set(order)) == len(model.leaves) == sum(a != b for a, b in zip(order, [None, *order]))


def test_what_would_be_lost_is_named():
    config = make_config()
    model, entries = make_model(config), hf.table(config)
    with pytest.raises(ValueError, match=r"heads/attention/key\[1\].*would be lost"):
        check_covered(model.leaves, entries)
    check_covered(model.leaves, entries, lambda path, index: head_one.further_heads(config, path, index))


@pytest.mark.parametrize("kind, tied, unembedding", [
    ("parallel", False, "replicated"), ("causal", True, "shared"), ("anticausal", False, "replicated"),
    ("linear", True, "shared"), ("linear", False, "replicated")])
def test_head_one_leaves_out_the_further_heads_alone(kind, tied, unembedding):
    config = make_config(head_kind=kind, tie_embedding=tied, unembedding=unembedding)
    model, entries = make_model(config), hf.table(config)
    check_covered(model.leaves, entries, lambda path, index: head_one.further_heads(config, path, index))
    layers = {name.split(".")[2] for name, _ in stream(model, entries, None) if name.startswith("model.layers.")}
    assert len(layers) == {"parallel": 3, "causal": 3, "anticausal": 5, "linear": 5}[kind]


def test_missing_extra_and_misshapen_tensors():
    config, model, entries = plain()
    tensors = dict(stream(model, entries, None))
    renamed = {name.replace("layers.1.mlp.up_proj", "layers.1.mlp.upp_proj"): t for name, t in tensors.items()}
    with pytest.raises(ValueError, match=r"lacks model.layers.1.mlp.up_proj.weight. .*model.layers.1.mlp.upp_proj"):
        reader(model.leaves, entries, InMemory(renamed))
    with pytest.raises(ValueError, match=r"holds model.norm.weigth, .*model.norm.weight"):
        reader(model.leaves, entries, InMemory({**tensors, "model.norm.weigth": tensors["model.norm.weight"]}))
    reader(model.leaves, entries, InMemory({**tensors, "rotary": tensors["model.norm.weight"]}),
           ignored=lambda name: name == "rotary")
    with pytest.raises(ValueError, match=r"lm_head.weight has the shape \[2, 16\], .* makes it \[259, 16\]"):
        reader(model.leaves, entries, InMemory({**tensors, "lm_head.weight": np.zeros((2, 16), np.float32)}))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_named_on_both_ways(value):
    config, model, entries = plain()
    arrays = make_arrays(config)
    arrays["trunk/mlp/up"][2, 3, 4] = value
    with pytest.raises(ValueError, match=r"trunk/mlp/up\[2\] holds 1 numbers that are NaN or infinite, of 384"):
        list(stream(make_model(config, arrays), entries, None))
    tensors = dict(stream(model, entries, None))
    tensors["lm_head.weight"] = np.full_like(tensors["lm_head.weight"], value)
    read = reader(model.leaves, entries, InMemory(tensors))
    with pytest.raises(ValueError, match="there: lm_head.weight holds 4144 numbers"):
        read("unembedding/kernel", ())


def test_a_number_that_the_dtype_cannot_hold():
    config, _, entries = plain()
    arrays = make_arrays(config)
    arrays["final_norm/scale"][3] = 1e6
    with pytest.raises(ValueError, match="final_norm/scale as float16 holds 1 .*--dtype of a wider range"):
        list(stream(make_model(config, arrays), entries, "float16"))
    assert {str(t.dtype) for _, t in stream(make_model(config, arrays), entries, "bfloat16")} == {"bfloat16"}
