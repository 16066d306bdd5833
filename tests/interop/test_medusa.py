"""Medusa heads in torch, written from what vLLM's model does, on the last states of a Llama of transformers."""

import json

import numpy as np
import pytest

from mtp_jax.convert import hf, medusa
from mtp_jax.convert.safetensors_file import open_folder
from mtp_jax.convert.table import stream
from tests.convert import forward
from tests.convert.models import make_arrays, make_config, make_model, options

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.interop


class Drafts(torch.nn.Module):
    """A residual block and an unembedding a head, under vLLM's names."""

    def __init__(self, facts):
        super().__init__()
        width, heads, shared = facts["hidden_size"], facts["num_heads"], facts["original_lm_head"]

        def block():
            module = torch.nn.Module()
            module.layers = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=facts["medusa_fc_bias"])
                                                for _ in range(facts["num_hidden_layers"]))
            return module

        self.blocks = torch.nn.ModuleList(block() for _ in range(heads))
        self.lm_heads = torch.nn.ModuleList(torch.nn.Linear(width, facts["truncated_vocab_size"], bias=False)
                                            for _ in range(1 if shared else heads))

    def forward(self, x):
        logits = []
        for j, block in enumerate(self.blocks):
            h = x
            for layer in block.layers:
                h = h + torch.nn.functional.silu(layer(h))
            logits.append(self.lm_heads[j if len(self.lm_heads) > 1 else 0](h))
        return torch.stack(logits)


@pytest.mark.parametrize("heads, changes", [
    (2, {}), (4, {"tie_embedding": True}), (4, {"unembedding": "replicated", "medusa_layers": 2}),
    (8, {"num_kv_heads": None})])
def test_drafts_on_the_states_of_a_llama(tmp_path, heads, changes):
    config = make_config(num_heads=heads, num_layers=3, head_kind="medusa", **changes)
    model = make_model(config)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.mlp_dim,
        num_hidden_layers=3, num_attention_heads=config.num_attention_heads, num_key_value_heads=config.kv_heads,
        rms_norm_eps=config.norm_eps, rope_theta=config.rope_theta, tie_word_embeddings=config.tie_embedding)).eval()
    state = {name: torch.from_numpy(np.ascontiguousarray(t)) for name, t in stream(model, hf.table(config), None)}
    missing, unexpected = llama.load_state_dict(state, strict=False)
    assert not unexpected and missing == (["lm_head.weight"] if config.tie_embedding else [])

    medusa.write(model, tmp_path, options("src", tmp_path, "medusa"))
    tensors = open_folder(tmp_path)
    drafts = Drafts(json.loads((tmp_path / "config.json").read_text()))
    drafts.load_state_dict({name: torch.from_numpy(tensors.read(name)) for name in tensors.infos})
    tokens = np.random.default_rng(0).integers(0, 259, (2, 16))
    ours = forward.logits(config, make_arrays(config), tokens)
    with torch.no_grad():
        told = llama(torch.from_numpy(tokens), output_hidden_states=True)
        theirs = drafts(told.hidden_states[-1]).numpy()  # behind the final norm, as vLLM hands them over
    assert forward.error(told.logits.numpy(), ours[0]) < 1e-4
    assert forward.error(theirs, ours[1:]) < 1e-4
    assert forward.error(theirs, ours[:-1]) > 0.05  # heads that are one off are far from it
