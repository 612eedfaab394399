"""Owns paged attention on the CPU: the native kernel, and padded torch where there is none."""

from __future__ import annotations

import torch

from kernels import native
from kernels.paged_attention.padded import padded_attention

_MAX_NATIVE_HEAD_DIM = 256


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
    k_scale: float,
    v_scale: float,
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
        or not k_scale == v_scale == 1
    ):
        return padded_attention(
            q,
            k_cache,
            v_cache,
            block_table,
            query_start,
            seq_lens,
            scale=scale * k_scale,
            window=window,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            sinks=sinks,
            causal=causal,
            v_scale=v_scale,
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
