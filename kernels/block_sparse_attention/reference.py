"""Defines block-sparse attention over a paged KV cache in plain torch: one sequence after the other."""

from __future__ import annotations

import torch


def visible_keys(
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    *,
    num_heads: int,
    sparse_block_size: int,
    num_local_blocks: int,
    stride: int,
    head_step: int,
) -> torch.Tensor:
    """query_positions (..., 1, n, 1), key_positions (L) -> bool (..., H, n, L).

    Positions lie in blocks of sparse_block_size. A query in block i sees the keys up to its own position that lie in a
    block j with i - j < num_local_blocks, and for head h those of each block with stride | j + h head_step + 1.
    """
    query_blocks, key_blocks = query_positions // sparse_block_size, key_positions // sparse_block_size
    shifts = torch.arange(num_heads, device=key_positions.device)[:, None, None] * head_step  # (H, 1, 1)
    strided = (key_blocks + shifts + 1) % stride == 0  # (H, 1, L)
    local = query_blocks - key_blocks < num_local_blocks  # (..., 1, n, L)
    return (query_positions >= key_positions) & (local | strided)


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
    """q (T, H, K), caches (B, G, S, K), block_table (R, M), query_start (R + 1), seq_lens (R) -> (T, H, K)."""
    num_heads, num_kv_heads, block_size = q.shape[1], k_cache.shape[1], k_cache.shape[2]
    out = torch.empty_like(q)
    starts = query_start.tolist()
    for r, length in enumerate(seq_lens.tolist()):
        rows, n = slice(starts[r], starts[r + 1]), starts[r + 1] - starts[r]
        if n == 0:
            continue
        pages = block_table[r, : -(-length // block_size)].long()
        k, v = (  # (L, H, K)
            cache[pages].transpose(1, 2).flatten(0, 1)[:length].float().repeat_interleave(num_heads // num_kv_heads, 1)
            for cache in (k_cache, v_cache)
        )
        scores = torch.einsum("nhk,lhk->hnl", q[rows].float(), k) * scale  # (H, n, L)
        visible = visible_keys(
            torch.arange(length - n, length, device=q.device)[None, :, None],
            torch.arange(length, device=q.device),
            num_heads=num_heads,
            sparse_block_size=sparse_block_size,
            num_local_blocks=num_local_blocks,
            stride=stride,
            head_step=head_step,
        )
        probabilities = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        out[rows] = torch.einsum("hnl,lhk->nhk", probabilities, v).to(q.dtype)
    return out
