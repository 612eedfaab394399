"""Owns M-RoPE's positions (Qwen2-VL: Wang et al., 2024): time, height and width of every token of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from preprocess.media_item import PlacedItem

Grid = tuple[int, int, int]  # tokens of an item along time, height and width


def mrope_positions(num_tokens: int, placed: Sequence[PlacedItem], grids: Sequence[Grid]) -> np.ndarray:
    """(3, num_tokens) int64. Text counts on all axes alike, an item's tokens count within its grid.

    What follows an item goes on behind its height or width, the larger of both, as in transformers. In the paper and in vLLM a
    video's time counts too, which makes a difference where it has more pairs of frames than rows and columns. Items have one
    span each.
    """
    pieces: list[np.ndarray] = []
    token, position = 0, 0
    for item, grid in sorted(zip(placed, grids, strict=True), key=lambda pair: pair[0].spans):
        ((start, length),) = item.spans
        pieces += [_text(start - token, position), np.indices(grid).reshape(3, length) + position + start - token]
        position += start - token + max(grid[1:])
        token = start + length
    return np.concatenate([*pieces, _text(num_tokens - token, position)], 1).astype(np.int64)


def _text(length: int, position: int) -> np.ndarray:
    return np.tile(np.arange(position, position + length), (3, 1))
