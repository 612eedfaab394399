"""Owns paged attention on the CPU: the native kernel, and where there is none, padded torch without a loop over sequences."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels import native
from kernels.paged_attention.reference import visible_keys

# Scores held at once by the torch path (float32): long prompts beside many sequences go in slices of queries.
_MAX_SCORES = 1 << 25

_MAX_NATIVE_HEAD_DIM = 256

# From positions of queries (R, 1, n, 1) and keys (L) to which keys each head sees, bool (R, H, n, L).
Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    causal: bool,
) -> torch.Tensor:
    """Shapes as in the public call. Takes the native kernel where formats and layout are what it reads."""
    num_tokens, num_heads, head_dim = q.shape
    num_blocks, num_kv_heads, block_size, _ = k_cache.shape
    code = native.codes.get(q.dtype)
    if (
        code is None
        or not k_cache.dtype == v_cache.dtype == q.dtype
        or not block_table.dtype == query_start.dtype == seq_lens.dtype == torch.int32
        or head_dim % 8
        or head_dim > _MAX_NATIVE_HEAD_DIM
        or not scale > 0
        or not (q.stride(2) == k_cache.stride(3) == block_table.stride(1) == 1 or num_tokens == 0)
        or k_cache.stride() != v_cache.stride()
    ):
        return torch_paged_attention(
            q,
            k_cache,
            v_cache,
            block_table,
            query_start,
            seq_lens,
            scale=scale,
            window=window,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            causal=causal,
        )
    # Held until the call returns, since only their addresses go there.
    query_start, seq_lens = query_start.contiguous(), seq_lens.contiguous()
    slopes, sinks = (None if p is None else p.to(torch.float32).contiguous() for p in (alibi_slopes, sinks))
    out = q.new_empty(num_tokens, num_heads, head_dim)
    native.lib.paged_attention(
        torch.get_num_threads(),
        code,
        causal,
        scale,
        softcap or 0.0,
        window or 0,
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        *k_cache.stride()[:3],
        num_blocks,
        num_kv_heads,
        block_size,
        block_table.data_ptr(),
        block_table.stride(0),
        block_table.shape[1],
        query_start.data_ptr(),
        seq_lens.data_ptr(),
        len(seq_lens),
        0 if slopes is None else slopes.data_ptr(),
        0 if sinks is None else sinks.data_ptr(),
        out.data_ptr(),
        num_tokens,
        num_heads,
        head_dim,
    )
    return out


def torch_paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    causal: bool,
    mask: Mask | None = None,
) -> torch.Tensor:
    """Rows of one token and rows of several are two groups, so that a prompt does not pad the others."""
    out = torch.empty_like(q)
    counts = query_start.diff()
    options = {
        "scale": scale,
        "window": window,
        "softcap": softcap,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "causal": causal,
        "mask": mask,
    }
    for members in ((counts == 1).nonzero().flatten(), (counts > 1).nonzero().flatten()):
        if len(members):
            _padded(
                out,
                q,
                k_cache,
                v_cache,
                block_table[members],
                query_start[:-1][members].long(),
                counts[members].long(),
                seq_lens[members].long(),
                **options,
            )
    return out


def _padded(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    first_rows: torch.Tensor,
    counts: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    causal: bool,
    mask: Mask | None,
) -> None:
    """Writes the rows of a group of R sequences, padded to its longest; first_rows, counts, seq_lens (R)."""
    num_blocks, num_kv_heads, block_size, head_dim = k_cache.shape
    num_heads, num_seqs = q.shape[1], len(seq_lens)
    group = num_heads // num_kv_heads
    longest, most = int(seq_lens.max()), int(counts.max())
    # Entries past a sequence's end may be anything; they are masked, but must be readable.
    pages = block_table[:, : -(-longest // block_size)].long().clamp(0, num_blocks - 1)
    k, v = (
        cache[pages].transpose(1, 2).reshape(num_seqs, num_kv_heads, -1, head_dim).float()  # (R, G, L, K)
        for cache in (k_cache, v_cache)
    )
    key_positions = torch.arange(k.shape[2])  # (L)
    in_sequence = key_positions < seq_lens[:, None]  # (R, L)
    v = v.masked_fill(~in_sequence[:, None, :, None], 0)  # 0 * NaN of a freed page would be NaN
    k = k.transpose(2, 3)  # (R, G, K, L)
    if window is not None and causal:  # pages before the window may be freed as well
        oldest = seq_lens - counts - window
        v = v.masked_fill((key_positions <= oldest[:, None])[:, None, :, None], 0)
    step = max(1, _MAX_SCORES // (num_seqs * num_heads * len(key_positions)))
    for first in range(0, most, step):
        offsets = torch.arange(first, min(most, first + step))  # (n)
        wanted = offsets < counts[:, None]  # (R, n)
        rows = (first_rows[:, None] + offsets).clamp(max=len(q) - 1)  # (R, n)
        n = len(offsets)
        queries = q[rows].float().view(num_seqs, n, num_kv_heads, group, head_dim).permute(0, 2, 3, 1, 4)
        scores = (queries.reshape(num_seqs, num_kv_heads, group * n, head_dim) @ k) * scale  # (R, G, group * n, L)
        scores = scores.view(num_seqs, num_heads, n, -1)  # (R, H, n, L)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        query_positions = ((seq_lens - counts)[:, None] + offsets)[:, :, None]  # (R, n, 1)
        if alibi_slopes is not None:
            scores = scores + alibi_slopes.float()[:, None, None] * (key_positions - query_positions)[:, None]
        visible = visible_keys(query_positions, key_positions, window, causal) & in_sequence[:, None]
        visible = visible[:, None]  # (R, 1, n, L)
        if mask is not None:
            visible = visible & mask(query_positions[:, None], key_positions)
        scores = scores.masked_fill(~visible, -torch.inf)
        if sinks is not None:
            scores = torch.cat((scores, sinks.float()[:, None, None].expand(num_seqs, -1, n, 1)), dim=-1)
        probabilities = scores.softmax(-1)[..., : len(key_positions)]
        probabilities = probabilities.reshape(num_seqs, num_kv_heads, group * n, -1)
        result = (probabilities @ v).view(num_seqs, num_heads, n, head_dim).transpose(1, 2)  # (R, n, H, K)
        out[rows[wanted]] = result[wanted].to(out.dtype)
