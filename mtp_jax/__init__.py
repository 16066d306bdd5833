"""Multi-token prediction in JAX: a shared trunk, N heads, and what follows from them."""

__version__ = "0.1.0"
