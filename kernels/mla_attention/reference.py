"""Defines attention over a paged cache of latents in plain torch: one sequence after the other, one softmax per row.

All heads share what the cache holds of a token: its latent c (C) and the rotated part r (P) of its key. With head h's
matrices for keys W_k (N, C) and values W_v (V, C), the key is (W_k c, r) and the value W_v c. Since

    q_nope · W_k c = (q_nope W_k) · c     and     sum_l p_l W_v c_l = W_v (sum_l p_l c_l),

neither is ever made: queries come here as (q_nope W_k, q_rope), and the caller multiplies what it gets by W_v.
"""

from __future__ import annotations

import torch


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
    """q (T, H, C + P), cache (B, S, C + P), block_table (R, M), query_start (R + 1), seq_lens (R) -> (T, H, C)."""
    block_size = cache.shape[1]
    out = q.new_empty(*q.shape[:2], kv_rank)
    starts = query_start.tolist()
    for r, length in enumerate(seq_lens.tolist()):
        n = starts[r + 1] - starts[r]
        if n == 0:
            continue
        pages = block_table[r, : -(-length // block_size)].long()
        keys = cache[pages].flatten(0, 1)[:length].float()  # (L, C + P)
        rows = slice(starts[r], starts[r + 1])
        scores = torch.einsum("nhk,lk->hnl", q[rows].float(), keys) * scale  # (H, n, L)
        hidden = torch.arange(length) > torch.arange(length - n, length)[:, None]  # (n, L): keys after the query
        probabilities = scores.masked_fill(hidden.to(q.device), -torch.inf).softmax(-1)
        out[rows] = torch.einsum("hnl,lc->nhc", probabilities, keys[:, :kv_rank]).to(q.dtype)
    return out
