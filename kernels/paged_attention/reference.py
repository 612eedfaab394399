"""Defines attention over a paged KV cache in plain torch: one sequence after the other, one softmax per row."""

from __future__ import annotations

import torch


def visible_keys(
    query_positions: torch.Tensor, key_positions: torch.Tensor, window: int | None, causal: bool
) -> torch.Tensor:
    """query_positions (..., n, 1), key_positions (..., 1, L) -> bool (..., n, L).

    A window reaches back window - 1 keys; without causality it reaches forward as far.
    """
    distance = query_positions - key_positions
    visible = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        visible = visible & (distance < window)
        if not causal:
            visible = visible & (-distance < window)
    return visible


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    causal: bool = True,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """q (T, H, K), caches (B, G, S, K), block_table (R, M), query_start (R + 1), seq_lens (R) -> (T, H, K)."""
    num_heads, num_kv_heads, block_size = q.shape[1], k_cache.shape[1], k_cache.shape[2]
    group = num_heads // num_kv_heads
    out = torch.empty_like(q)
    starts = query_start.tolist()
    for r, length in enumerate(seq_lens.tolist()):
        n = starts[r + 1] - starts[r]
        if n == 0:
            continue
        oldest = max(0, length - n - window + 1) if window is not None and causal else 0
        first_page = oldest // block_size
        pages = block_table[r, first_page : -(-length // block_size)].long()
        rows_read = slice(oldest - first_page * block_size, length - first_page * block_size)
        k, v = (  # (L, H, K): pages in order, cut so that nothing of an old page, or of one before the window, is read
            cache[pages].transpose(1, 2).flatten(0, 1)[rows_read].float().repeat_interleave(group, dim=1) * factor
            for cache, factor in ((k_cache, k_scale), (v_cache, v_scale))
        )
        rows = slice(starts[r], starts[r + 1])
        scores = torch.einsum("nhk,lhk->hnl", q[rows].float(), k) * scale  # (H, n, L)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        query_positions = torch.arange(length - n, length, device=q.device)[:, None]  # (n, 1)
        key_positions = torch.arange(oldest, length, device=q.device)[None]  # (1, L)
        if alibi_slopes is not None:
            scores = scores + alibi_slopes.float()[:, None, None] * (key_positions - query_positions)
        scores = scores.masked_fill(~visible_keys(query_positions, key_positions, window, causal), -torch.inf)
        if sinks is not None:  # a key of that score whose value is zero
            scores = torch.cat((scores, sinks.float()[:, None, None].expand(-1, n, 1)), dim=-1)
        probabilities = scores.softmax(-1)[..., : length - oldest]
        out[rows] = torch.einsum("hnl,lhk->nhk", probabilities, v).to(q.dtype)
    return out
