"""Attends over a paged KV cache; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.paged_attention import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["paged_attention"]


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
    """q (T, H, K), caches (B, G, S, K), block_table (R, M), query_start (R + 1), seq_lens (R), int32 -> (T, H, K).

    Sequence r has n = query_start[r + 1] - query_start[r] rows, 0 allowed; they are its last n of seq_lens[r] tokens. A
    row sees the keys up to its own position, with a window the last `window` of them, its own included; without
    causality it sees all keys, with a window those closer than `window` on either side; without both, rows may be of
    another sequence than the keys (cross attention), and more than these. alibi_slopes and sinks (H).
    Caches may be float8_e4m3fn: keys are k_scale times what stands there, values v_scale times.
    """
    if q.dim() != 3 or k_cache.shape != v_cache.shape or k_cache.shape[3] != q.shape[2]:
        raise ValueError(
            "paged_attention takes q (T, H, K) and caches (B, G, S, K), got "
            f"{[tuple(t.shape) for t in (q, k_cache, v_cache)]}"
        )
    if q.shape[1] % k_cache.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads cannot share {k_cache.shape[1]} kv heads evenly")
    if len(query_start) != len(seq_lens) + 1 or len(block_table) != len(seq_lens):
        raise ValueError(
            f"{len(seq_lens)} sequences need as many rows of the block table and one more query_start, got "
            f"{len(block_table)} and {len(query_start)}"
        )
    for name, values in (("alibi_slopes", alibi_slopes), ("sinks", sinks)):
        if values is not None and values.shape != (q.shape[1],):
            raise ValueError(f"{name} takes one value for each of {q.shape[1]} heads, got {tuple(values.shape)}")
    if use_triton(q):
        from kernels.paged_attention import kernel as path
    else:
        path = cpu if q.is_cpu else reference
    return path.paged_attention(
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
        k_scale=k_scale,
        v_scale=v_scale,
    )
