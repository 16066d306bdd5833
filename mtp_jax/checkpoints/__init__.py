"""Checkpoints: saved in the background, checked before use, restored strictly, and a source of other models."""

from mtp_jax.checkpoints.checkpointer import Checkpointer, Restored
from mtp_jax.checkpoints.errors import CheckpointError, CheckpointMismatch
from mtp_jax.checkpoints.init_from import LoadedParams, check_source, initialise_from, load_extra, load_params

__all__ = ["CheckpointError", "CheckpointMismatch", "Checkpointer", "LoadedParams", "Restored", "check_source",
           "initialise_from", "load_extra", "load_params"]
