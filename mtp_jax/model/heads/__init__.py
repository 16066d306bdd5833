"""Head kinds: how N heads are wired to the trunk. One file a kind.

A kind of your own is a subclass of `HeadKind` under `@register_head_kind("name")`, in a file here or in the experiment
that uses it; `config.model.head_kind = "name"` then selects it.
"""

from mtp_jax.model.heads import (  # noqa: F401  (each registers its kind)
    anticausal,
    causal,
    linear,
    medusa,
    parallel,
    sequential,
)
from mtp_jax.model.heads.interface import HEAD_KINDS, HeadKind, get_head_kind, register_head_kind

__all__ = ["HEAD_KINDS", "HeadKind", "get_head_kind", "register_head_kind"]
