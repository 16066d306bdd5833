"""With one head, the model is transformers' LlamaForCausalLM: same weights, same logits, same gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.config import ModelConfig
from mtp_jax.model import ModelSpec
from mtp_jax.objective import mtp_cross_entropy, multi_token_targets
from mtp_jax.training.state import flatten_params

pytestmark = pytest.mark.interop
V, L, B = 256, 24, 2


def llama_and_spec(kv_heads):
    """Returns a random Llama and our spec of the same shape."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = ModelConfig(num_heads=1, num_layers=3, d_model=32, num_attention_heads=4, num_kv_heads=kv_heads, d_ff=48,
                         vocab_size=V)
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, rms_norm_eps=config.norm_eps, rope_theta=config.rope_theta,
        tie_word_embeddings=False, attention_bias=False, initializer_range=0.1))
    return torch, llama, ModelSpec.create(config)


def ours(llama, spec):
    """Returns Llama's weights as our parameters: the last layer is the head."""
    config = spec.config
    A, K, C, D = config.num_attention_heads, config.kv_heads, config.attention_head_dim, config.d_model
    state = {name: value.detach().numpy() for name, value in llama.state_dict().items()}

    def layers(numbers):
        def stacked(name, shape=None):
            arrays = [state[f"model.layers.{i}.{name}.weight"].T for i in numbers]
            return jnp.stack([a if shape is None else a.reshape(shape) for a in arrays])
        return {
            "attention_norm": {"scale": stacked("input_layernorm")},
            "attention": {"query": stacked("self_attn.q_proj", (D, A, C)),
                          "key": stacked("self_attn.k_proj", (D, K, C)),
                          "value": stacked("self_attn.v_proj", (D, K, C)),
                          "out": stacked("self_attn.o_proj", (A, C, D))},
            "mlp_norm": {"scale": stacked("post_attention_layernorm")},
            "mlp": {"gate": stacked("mlp.gate_proj"), "up": stacked("mlp.up_proj"), "down": stacked("mlp.down_proj")},
        }

    last = config.num_layers - 1
    return {"embedding": {"embedding": jnp.asarray(state["model.embed_tokens.weight"])},
            "trunk": layers(range(last)), "heads": layers([last]),
            "final_norm": {"scale": jnp.asarray(state["model.norm.weight"])},
            "unembedding": {"kernel": jnp.asarray(state["lm_head.weight"])}}


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_logits_loss_and_gradient_are_llamas(kv_heads):
    torch, llama, spec = llama_and_spec(kv_heads)
    params = ours(llama, spec)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten_params(spec.shapes).items()}
    assert {path: tuple(leaf.shape) for path, leaf in flatten_params(params).items()} == shapes
    tokens = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
    segments, positions = jnp.ones((B, L), jnp.int32), jnp.tile(jnp.arange(L, dtype=jnp.int32), (B, 1))
    targets_NxBxL, mask_NxBxL = multi_token_targets(jnp.asarray(tokens), segments, positions, 1)

    def loss_of(params):
        model = spec.bind(params)
        h_NxBxLxD = model(jnp.asarray(tokens), segments, positions)
        loss, _ = mtp_cross_entropy(h_NxBxLxD, model.unembedding_matrix(), targets_NxBxL, mask_NxBxL,
                                    jnp.full(1, 1 / (B * (L - 1))), vocab_size=V)
        return loss, model.logits(h_NxBxLxD)[0]

    (loss, logits_BxLxV), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    ids = torch.tensor(tokens, dtype=torch.long)
    output = llama(input_ids=ids, labels=ids)
    output.loss.backward()
    np.testing.assert_allclose(logits_BxLxV, output.logits.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(loss, output.loss.item(), rtol=1e-6)
    query = llama.model.layers[2].self_attn.q_proj.weight.grad.T
    pairs = [(grads["embedding"]["embedding"], llama.model.embed_tokens.weight.grad),
             (grads["unembedding"]["kernel"], llama.lm_head.weight.grad),
             (grads["trunk"]["mlp"]["down"][0], llama.model.layers[0].mlp.down_proj.weight.grad.T),
             (grads["heads"]["attention"]["query"][0].reshape(32, 32), query)]
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine, theirs.numpy(), atol=2e-6)
