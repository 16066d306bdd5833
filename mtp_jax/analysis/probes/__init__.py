"""Probes of a trained model: inserted tokens, average attention, redistributed activations."""
