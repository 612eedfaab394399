"""Defines the embedding lookup in plain torch."""

from __future__ import annotations

import torch


def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """ids (T) int64, weight (V, D) -> (T, D)."""
    return weight[ids]
