"""Llama or Qwen3 with modules for multi-token prediction, with which transformers' generate(use_mtp=True) drafts.

The modules lie behind the layers that transformers builds, as model.layers.L and on, L being num_hidden_layers: their
names are those of DeepSeek-V3's. The classes here only tell transformers that these tensors are there on purpose; it
then finds the modules by the same patterns (version 5.23 and later).
"""

from transformers import LlamaForCausalLM, Qwen3ForCausalLM


class _WithModules:
    def __init__(self, config):
        super().__init__(config)
        first = config.num_hidden_layers
        self._keys_to_ignore_on_load_unexpected = {
            rf"^model\.layers\.{number}\." for number in range(first, first + config.num_mtp_layers)}


class MTPLlamaForCausalLM(_WithModules, LlamaForCausalLM):
    """LlamaForCausalLM with modules."""


class MTPQwen3ForCausalLM(_WithModules, Qwen3ForCausalLM):
    """Qwen3ForCausalLM, which is Llama with norms on queries and keys, with modules."""
