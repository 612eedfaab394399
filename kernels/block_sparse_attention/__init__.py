"""Attends to some blocks of a paged KV cache; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.block_sparse_attention import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["block_sparse_attention"]


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
    """q (T, H, K), caches (B, G, S, K), block_table (R, M), query_start (R + 1), seq_lens (R), int32 -> (T, H, K).

    Sequences as in paged_attention. A query sees the keys up to its own in the last num_local_blocks blocks of
    sparse_block_size positions, its own block counted in, and in each stride-th block, shifted by h * head_step for
    head h.
    """
    if q.dim() != 3 or k_cache.shape != v_cache.shape or k_cache.shape[3] != q.shape[2]:
        raise ValueError(
            "block_sparse_attention takes q (T, H, K) and caches (B, G, S, K), got "
            f"{[tuple(t.shape) for t in (q, k_cache, v_cache)]}"
        )
    if q.shape[1] % k_cache.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k_cache.shape[1]} kv heads evenly")
    if min(sparse_block_size, num_local_blocks, stride) < 1 or head_step < 0:
        raise ValueError(
            f"sparse_block_size {sparse_block_size}, num_local_blocks {num_local_blocks} and stride {stride} must be "
            f"at least 1, head_step {head_step} at least 0"
        )
    if use_triton(q):
        from kernels.block_sparse_attention import kernel as path
    else:
        path = cpu if q.is_cpu else reference
    return path.block_sparse_attention(
        q,
        k_cache,
        v_cache,
        block_table,
        query_start,
        seq_lens,
        scale=scale,
        sparse_block_size=sparse_block_size,
        num_local_blocks=num_local_blocks,
        stride=stride,
        head_step=head_step,
    )
