"""How an array of ours becomes the tensor of another format, and back; each pair is exact.

Ours are [*in, *out] and half-split in their rotary pairs (feature c goes with c + C/2). Torch's linear layers are (out,
in); Meta's and llama.cpp's pairs are neighbours (2c, 2c + 1).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Copy:
    """The same array: norms, and matrices that both keep alike."""

    def shape(self, ours: Shape) -> Shape:
        """Returns the shape of the tensor for an array of shape `ours`."""
        return ours

    def out(self, array: np.ndarray) -> np.ndarray:
        """Returns the tensor for an array of ours."""
        return array

    def back(self, tensor: np.ndarray, ours: Shape) -> np.ndarray:
        """Returns our array, of shape `ours`, for a tensor."""
        return tensor.reshape(ours)


@dataclasses.dataclass(frozen=True)
class Linear(Copy):
    """A projection: [*in, *out] <-> (out, in).

    Attributes:
      inputs: number of axes of `in`.
    """

    inputs: int = 1

    def shape(self, ours: Shape) -> Shape:
        return math.prod(ours[self.inputs:]), math.prod(ours[:self.inputs])

    def out(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(self.shape(array.shape)[::-1]).T

    def back(self, tensor: np.ndarray, ours: Shape) -> np.ndarray:
        return tensor.T.reshape(ours)


@dataclasses.dataclass(frozen=True)
class InterleavedLinear(Linear):
    """A projection to queries or keys, [D, heads, C] <-> (heads C, D), with neighbouring rotary pairs there."""

    def out(self, array: np.ndarray) -> np.ndarray:
        return super().out(_interleave(array))

    def back(self, tensor: np.ndarray, ours: Shape) -> np.ndarray:
        return _split(super().back(tensor, ours))


@dataclasses.dataclass(frozen=True)
class InterleavedNorm(Copy):
    """The scale of a norm of queries or keys, [C], with neighbouring rotary pairs there."""

    def out(self, array: np.ndarray) -> np.ndarray:
        return _interleave(array)

    def back(self, tensor: np.ndarray, ours: Shape) -> np.ndarray:
        return _split(tensor.reshape(ours))


@dataclasses.dataclass(frozen=True)
class Vocabulary(Copy):
    """A matrix with a row a token: [padded V, D] <-> (V, D). Padded rows come back as zeros; no logit reads them.

    Attributes:
      rows: V, ids in use.
    """

    rows: int = 0

    def shape(self, ours: Shape) -> Shape:
        return (self.rows, *ours[1:])

    def out(self, array: np.ndarray) -> np.ndarray:
        return array[:self.rows]

    def back(self, tensor: np.ndarray, ours: Shape) -> np.ndarray:
        if tensor.shape == ours:
            return tensor
        return np.concatenate([tensor, np.zeros((ours[0] - self.rows, *ours[1:]), tensor.dtype)])


@dataclasses.dataclass(frozen=True)
class Folded(Vocabulary):
    """An unembedding with the linear head before it multiplied in: one way only.

    Attributes:
      path: of the head's map, [N, D, D].
      index: of the head.
    """

    path: str = "heads/kernel"
    index: tuple[int, ...] = (0,)

    def fold(self, array: np.ndarray, kernel_DxD: np.ndarray) -> np.ndarray:
        """Returns U W^T, so that (x W) U^T is x times its transpose; products in fp64."""
        wide = self.out(array).astype(np.float64) @ kernel_DxD.astype(np.float64).T
        return wide.astype(array.dtype)


def _interleave(array: np.ndarray) -> np.ndarray:
    """Returns [..., C] with feature c at 2c and c + C/2 at 2c + 1."""
    halves = array.reshape(*array.shape[:-1], 2, -1)
    return np.swapaxes(halves, -1, -2).reshape(array.shape)


def _split(array: np.ndarray) -> np.ndarray:
    """Undoes `_interleave`."""
    pairs = array.reshape(*array.shape[:-1], -1, 2)
    return np.swapaxes(pairs, -1, -2).reshape(array.shape)
