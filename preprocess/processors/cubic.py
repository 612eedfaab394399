"""Owns resizing as OpenCV's INTER_CUBIC does it: cubic convolution (Keys, 1981) of 4 x 4 pixels, never of more."""

from __future__ import annotations

import numpy as np

_A = -0.75  # the free parameter, the slope at a distance of one pixel


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """pixels (H, W, C) uint8 -> (height, width, C) float32, which may lie outside of [0, 255]."""
    return _along(_along(pixels, 1, width), 0, height)


def _along(pixels: np.ndarray, axis: int, length: int) -> np.ndarray:
    """The pixels redrawn along one axis; beyond the edge lies the last pixel again."""
    old = pixels.shape[axis]
    centres = (np.arange(length) + 0.5) * (old / length) - 0.5
    first = np.floor(centres).astype(np.int64)
    weights = _weights(centres - first).astype(np.float32)  # (4, length)
    result = np.zeros((), np.float32)
    for offset, weight in zip(range(-1, 3), weights, strict=True):
        taken = pixels.take(np.clip(first + offset, 0, old - 1), axis)
        result = result + taken * (weight[:, None, None] if axis == 0 else weight[:, None])
    return result


def _weights(distance: np.ndarray) -> np.ndarray:
    """Of the pixels at -1, 0, 1 and 2, for a point so far (in [0, 1)) behind that at 0."""

    def near(x: np.ndarray) -> np.ndarray:  # up to one pixel away
        return ((_A + 2) * x - (_A + 3)) * x * x + 1

    def far(x: np.ndarray) -> np.ndarray:
        return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A

    return np.stack([far(1 + distance), near(distance), near(1 - distance), far(2 - distance)])
