"""Fast-LLM's layout: each head, put in the place of the last layer, is a Llama of transformers."""

import numpy as np
import pytest

from mtp_jax.convert import fast_llm
from mtp_jax.convert.safetensors_file import open_folder
from tests.convert import forward
from tests.convert.models import make_arrays, make_config, make_model, options

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.interop


@pytest.mark.parametrize("heads, tied", [(1, False), (2, True), (4, False), (8, False)])
def test_every_head_is_the_last_layer_of_a_llama(tmp_path, heads, tied):
    config = make_config(num_heads=heads, num_layers=heads + 2, tie_embedding=tied)
    fast_llm.write(make_model(config), tmp_path, options("src", tmp_path, "fast_llm"))
    tensors = open_folder(tmp_path)
    facts = fast_llm.config_json(config, make_model(config), "float32")
    shape = transformers.LlamaConfig(**{name: value for name, value in facts.items()
                                        if name not in ("architectures", "model_type", "auto_map", "torch_dtype")})
    llama = transformers.LlamaForCausalLM(shape).eval()
    state = {name: torch.from_numpy(tensors.read(name)) for name in tensors.infos}
    tokens = np.random.default_rng(0).integers(0, 259, (2, 16))
    ours, last = forward.logits(config, make_arrays(config), tokens), f"model.layers.{facts['num_hidden_layers'] - 1}."
    for k in range(heads):
        plain = {name: t for name, t in state.items() if "mtp_" not in name}
        if k:
            prefix = f"model.mtp_heads.{k - 1}."
            plain |= {last + name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        plain["model.norm.weight"] = state[f"model.mtp_norms.{k}.weight"]
        missing, unexpected = llama.load_state_dict(plain, strict=False)
        assert not unexpected and missing == (["lm_head.weight"] if tied else [])
        with torch.no_grad():
            theirs = llama(torch.from_numpy(tokens)).logits.numpy()
        assert forward.error(theirs, ours[k]) < 1e-4, f"head {k + 1}"
        assert heads == 1 or forward.error(theirs, ours[k - 1]) > 0.05  # another head's are far from it
