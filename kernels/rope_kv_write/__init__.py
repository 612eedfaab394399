"""Rotates queries and keys and writes the cache; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.rope_kv_write import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["rope_kv_write"]


def rope_kv_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_sin: torch.Tensor | None,
    positions: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> torch.Tensor:
    """q (T, H, K), k and v (T, G, K), positions and slot_mapping (T) int64 -> q rotated (T, H, K).

    cos_sin (P, rope_dim) float32 holds cosines in its first half and sines in its second; None rotates nothing and
    returns q itself. Rotated keys and the values go to k_cache, v_cache (B, G, S, K) at slot block * S + offset; slot
    -1 writes nothing. q, k and v may be slices of one wider tensor and are left as they are. Caches may be
    float8_e4m3fn: they then get keys in units of k_scale and values in units of v_scale, at most 448. Raises IndexError
    for a position outside cos_sin or a slot outside the cache, except from a GPU, which is not asked.
    """
    q_shape, k_shape, cache_shape = q.shape, k.shape, k_cache.shape
    if (
        len(q_shape) != 3
        or k_shape != v.shape
        or cache_shape != v_cache.shape
        or cache_shape[1] != k_shape[1]
        or not q_shape[2] == k_shape[2] == cache_shape[3]
    ):
        raise ValueError(
            "rope_kv_write takes q (T, H, K), k and v (T, G, K), caches (B, G, S, K), got "
            f"{[tuple(t.shape) for t in (q, k, v, k_cache, v_cache)]}"
        )
    if not q_shape[0] == k_shape[0] == positions.shape[0] == slot_mapping.shape[0]:
        raise ValueError(
            f"rope_kv_write got {q_shape[0]} queries, {k_shape[0]} keys, {len(positions)} positions, "
            f"{len(slot_mapping)} slots"
        )
    if cos_sin is not None and (cos_sin.shape[1] % 2 or cos_sin.shape[1] > q_shape[2]):
        raise ValueError(f"rope_dim {cos_sin.shape[1]} must be even and at most the head dim {q_shape[2]}")
    if use_triton(q):
        from kernels.rope_kv_write import kernel as path
    else:
        path = cpu if q.is_cpu else reference
    return path.rope_kv_write(
        q, k, v, cos_sin, positions, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale
    )
