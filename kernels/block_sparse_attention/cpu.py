"""Owns block-sparse attention on the CPU: the torch path of paged attention, which pads sequences, under this mask."""

from __future__ import annotations

import functools

import torch

from kernels.block_sparse_attention.reference import visible_keys
from kernels.paged_attention.padded import padded_attention


def block_sparse_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    sparse_block_size: int,
    num_local_blocks: int,
    stride: int,
    head_step: int,
) -> torch.Tensor:
    """Shapes as in the public call."""
    mask = functools.partial(
        visible_keys,
        num_heads=q.shape[1],
        sparse_block_size=sparse_block_size,
        num_local_blocks=num_local_blocks,
        stride=stride,
        head_step=head_step,
    )
    return padded_attention(q, k_cache, v_cache, block_table, query_start, seq_lens, scale=scale, mask=mask)
