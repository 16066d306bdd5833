"""Calibrations that nobody measured."""

import numpy as np

from mtp_jax.decoding.calibration import Calibration


def make_calibration(seed=0, heads=4, right=0.7, ranks=10, positions=40, **facts):
    """Returns made-up ranks: 0 with probability `right`, else any."""
    draw = np.random.default_rng(seed)
    rows = []
    for extra in range(3):
        shape = (positions + extra, heads - 1)
        rows.append(np.where(draw.random(shape) < right, 0, draw.integers(0, ranks + 1, shape)).astype(np.uint8))
    return Calibration(heads, ranks, tuple(rows), **facts)
