"""Generating text with a trained model."""

from mtp_jax.decoding.sample import sample

__all__ = ["sample"]
