"""Generating text with a trained model: with head 1 alone, or several tokens a forward with its own heads."""

from mtp_jax.decoding.generate import generate
from mtp_jax.decoding.generation import Generation
from mtp_jax.decoding.model import DecodingModel
from mtp_jax.decoding.tree import Tree

__all__ = ["DecodingModel", "Generation", "Tree", "generate"]
