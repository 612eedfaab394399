"""Owns routing on the CPU: the definition, in the batch-invariant mode of one token after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kernels import batch_invariance
from kernels.moe_routing import reference


def route(logits: torch.Tensor, top_k: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (T, E) -> weights, ids (T, k); options as in the public call."""
    return _of_rows(lambda rows: reference.route(rows, top_k, **options), logits)


def sparse_mixer(logits: torch.Tensor, top_k: int, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (T, E) -> weights, ids (T, k)."""
    return _of_rows(lambda rows: reference.sparse_mixer(rows, top_k, jitter), logits)


def _of_rows(
    choose: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if not batch_invariance.is_on() or not len(logits):
        return choose(logits)
    weights, ids = zip(*(choose(row.clone()) for row in logits.split(1)), strict=True)
    return torch.cat(weights), torch.cat(ids)
