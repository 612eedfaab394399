"""Looks up rows of an embedding table. Nothing to gain by a kernel of ours: torch's gather is one launch at memory speed."""

from __future__ import annotations

import torch

__all__ = ["embedding"]


def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """ids (T) int64, weight (V, D) -> (T, D). Raises IndexError for an id outside the table."""
    if ids.dim() != 1 or weight.dim() != 2:
        raise ValueError(f"embedding takes ids (T) and a table (V, D), got {tuple(ids.shape)}, {tuple(weight.shape)}")
    return weight.index_select(0, ids)
