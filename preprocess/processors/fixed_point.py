"""Owns resizing as torch does it with bytes: weights and sums are whole numbers, so that every machine gets the same.

Processors of videos resize with torch, those of pictures with PIL, whose weights are finer: a few values differ by one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image as PilImages

Filter = Callable[[np.ndarray], np.ndarray]


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Cubic convolution (Keys, 1981) with a slope of -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


# By PIL's number: the weight at a distance in pixels, and from where on it is zero.
_FILTERS: dict[int, tuple[Filter, float]] = {
    int(PilImages.Resampling.BILINEAR): (_triangle, 1.0),
    int(PilImages.Resampling.BICUBIC): (_cubic, 2.0),
}
RESAMPLINGS = tuple(_FILTERS)


def resized(frames: np.ndarray, width: int, height: int, resample: int) -> np.ndarray:
    """frames (..., H, W, C) uint8 -> (..., height, width, C) uint8; `resample` is one of RESAMPLINGS."""
    return _along(_along(frames, -2, width, resample), -3, height, resample)


def _along(frames: np.ndarray, axis: int, length: int, resample: int) -> np.ndarray:
    if frames.shape[axis] == length:
        return frames
    indexes, weights, bits = _taps(frames.shape[axis], length, *_FILTERS[resample])
    shape = (-1, 1, 1) if axis == -3 else (-1, 1)
    total = np.int32(1 << (bits - 1))  # a half, for rounding
    for index, weight in zip(indexes, weights, strict=True):
        total = total + frames.take(index, axis) * weight.reshape(shape)
    return np.clip(total >> bits, 0, 255).astype(np.uint8)


def _taps(old: int, new: int, weight_at: Filter, reach: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Which old pixels make each new one, (taps, new), their weights (taps, new) int32, and the bits of a weight of 1."""
    scale = old / new
    stretch = max(scale, 1.0)
    centres = scale * (np.arange(new) + 0.5)
    first = np.maximum((centres - reach * stretch + 0.5).astype(np.int64), 0)
    behind = np.minimum((centres + reach * stretch + 0.5).astype(np.int64), old)
    indexes = first + np.arange((behind - first).max())[:, None]  # (taps, new)
    weights = np.where(indexes < behind, weight_at((indexes - centres + 0.5) / stretch), 0.0)
    weights /= weights.sum(0)
    bits = next(bits for bits in range(22, -1, -1) if bits == 0 or int(0.5 + weights.max() * (1 << bits)) < 1 << 15)
    rounded = np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)).astype(np.int32)
    return np.minimum(indexes, old - 1), rounded, bits
