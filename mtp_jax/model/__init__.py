"""The model: layers, trunk, heads."""

from mtp_jax.model.heads import HeadKind, get_head_kind, register_head_kind
from mtp_jax.model.language_model import ModelSpec, MultiTokenLM, num_trunk_layers
from mtp_jax.model.stacks import Execution, resolve_execution

__all__ = ["Execution", "HeadKind", "ModelSpec", "MultiTokenLM", "get_head_kind", "num_trunk_layers",
           "register_head_kind", "resolve_execution"]
