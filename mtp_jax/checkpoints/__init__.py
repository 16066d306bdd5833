"""Checkpoints: saved in the background, checked before use, restored strictly, and a source of other models."""

from mtp_jax.checkpoints.checkpointer import Checkpointer, Restored
from mtp_jax.checkpoints.errors import CheckpointError, CheckpointMismatch

__all__ = ["CheckpointError", "CheckpointMismatch", "Checkpointer", "Restored"]
