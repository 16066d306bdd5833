"""Meta's layout and torch: each reads what the other wrote."""

import json

import numpy as np
import pytest

from mtp_jax.convert import meta
from mtp_jax.convert.pth import open_pth
from mtp_jax.convert.safetensors_file import open_file
from tests.convert import forward, parallel_reference
from tests.convert.models import assert_same, make_arrays, make_config, make_model, options, read_all

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.interop

CONFIG = make_config(num_heads=4, num_layers=6, vocab_multiple=128)


def written(folder, **fields):
    folder.mkdir()
    meta.write(make_model(CONFIG), folder, options("src", folder, "meta", **fields))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_reads_our_file(tmp_path, dtype):
    folder = written(tmp_path / "meta", dtype=dtype)
    state = torch.load(folder / meta.PTH, weights_only=True)
    others = open_file(folder / meta.SAFETENSORS)
    assert state.keys() == others.infos.keys()
    for name, tensor in state.items():
        assert tensor.dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(tensor.float().numpy(), others.read(name).astype(np.float32))
    mapped = torch.load(folder / meta.PTH, weights_only=True, mmap=True)
    assert torch.equal(mapped["output.weight"], state["output.weight"])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wrap", ["plain", "parameters", "one storage"])
def test_we_read_torchs_file(tmp_path, dtype, wrap):
    folder = written(tmp_path / "meta", dtype=dtype)
    state = torch.load(folder / meta.PTH, weights_only=True)
    if wrap == "parameters":
        module = torch.nn.ParameterDict({name.replace(".", "/"): tensor for name, tensor in state.items()})
        state = type(module.state_dict())((name.replace("/", "."), torch.nn.Parameter(tensor))
                                          for name, tensor in module.state_dict().items())
    elif wrap == "one storage":
        flat = torch.cat([tensor.reshape(-1) for tensor in state.values()])
        parts = flat.split([tensor.numel() for tensor in state.values()])
        state = {name: part.view(tensor.shape) for part, (name, tensor) in zip(parts, state.items())}
    state["rope.freqs"] = torch.ones(2)
    torch.save(state, folder / meta.PTH)
    want = {name: array for name, array in read_all(meta.read(folder, options(folder, "x", "workdir"))).items()}
    (folder / meta.SAFETENSORS).unlink()
    assert_same(read_all(meta.read(folder, options(folder, "x", "workdir"))), want)


def test_what_torch_wrote_in_another_way_is_told(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(3, 4).T}, path)
    with pytest.raises(ValueError, match=r"a does not lie as one block \(strides \[1, 4\]\)"):
        open_pth(path)
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="no zip archive.*before torch 1.6"):
        open_pth(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="names torch.nn.modules.linear.Linear in its pickle.*refused"):
        open_pth(path)
    torch.save({"a": torch.ones(3, dtype=torch.complex64)}, path)
    with pytest.raises(ValueError, match="it holds a torch.ComplexFloatStorage, and what can be read is FloatStorage"):
        open_pth(path)


def test_the_reference_on_the_tensors_that_torch_reads(tmp_path):
    folder = written(tmp_path / "meta")
    tensors = {name: tensor.numpy() for name, tensor in torch.load(folder / meta.PTH, weights_only=True).items()}
    tokens = np.random.default_rng(1).integers(0, 259, (1, 12))
    got = parallel_reference.logits(tensors, json.loads((folder / meta.PARAMS).read_text()), tokens[0])
    assert forward.error(np.moveaxis(got, 1, 0)[:, None], forward.logits(CONFIG, make_arrays(CONFIG), tokens)) < 1e-4
