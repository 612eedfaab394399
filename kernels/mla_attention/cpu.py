"""Owns attention over latents on the CPU: that of one kv head whose values are the first part of its keys."""

from __future__ import annotations

import torch

from kernels.paged_attention.padded import padded_attention


def mla_attention(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    kv_rank: int,
    scale: float,
) -> torch.Tensor:
    """Shapes as in the public call."""
    keys = cache[:, None]  # (B, 1, S, C + P)
    return padded_attention(q, keys, None, block_table, query_start, seq_lens, scale=scale, value_dim=kv_rank)
