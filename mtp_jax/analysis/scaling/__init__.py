"""Scaling laws: points from runs or tables, laws, fits, what they predict, and pictures of it."""
