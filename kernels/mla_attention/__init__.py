"""Attends over a paged cache of latents; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.mla_attention import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["mla_attention"]


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
    """q (T, H, C + P), cache (B, S, C + P), block_table (R, M), query_start (R + 1), seq_lens (R), int32 -> (T, H, C).

    C is kv_rank. Sequence r has n = query_start[r + 1] - query_start[r] rows, 0 allowed; they are its last n of
    seq_lens[r] tokens, and a row sees the tokens up to its own.
    """
    if q.dim() != 3 or cache.dim() != 3 or cache.shape[2] != q.shape[2] or not 0 < kv_rank <= q.shape[2]:
        raise ValueError(
            f"mla_attention takes q (T, H, C + P), a cache (B, S, C + P) and C, got {tuple(q.shape)}, "
            f"{tuple(cache.shape)} and {kv_rank}"
        )
    if len(query_start) != len(seq_lens) + 1 or len(block_table) != len(seq_lens):
        raise ValueError(
            f"{len(seq_lens)} sequences need as many rows of the block table and one more query_start, got "
            f"{len(block_table)} and {len(query_start)}"
        )
    if use_triton(q):
        from kernels.mla_attention import kernel as path
    else:
        path = cpu if q.is_cpu else reference
    return path.mla_attention(q, cache, block_table, query_start, seq_lens, kv_rank=kv_rank, scale=scale)
