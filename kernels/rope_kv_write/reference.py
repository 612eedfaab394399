"""Defines rotary position embedding with the write of keys and values into the paged cache, in plain torch."""

from __future__ import annotations

import torch


def rotate(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x (T, H, K), cos_sin (P, rope_dim) float32, positions (T) -> (T, H, K) rotated in float32, rounded once.

    Pair i is (x[i], x[i + rope_dim / 2]), as GPT-NeoX has it; what lies past rope_dim passes through.
    """
    rope_dim = cos_sin.shape[1]
    half = rope_dim // 2
    cos, sin = cos_sin[positions].unsqueeze(1).split(half, dim=-1)  # (T, 1, half) each
    x1, x2 = x[..., :half].float(), x[..., half:rope_dim].float()
    first, second = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    return torch.cat((first.to(x.dtype), second.to(x.dtype), x[..., rope_dim:]), dim=-1)


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
    """q (T, H, K), k, v (T, G, K), caches (B, G, S, K), slot_mapping (T): block * S + offset, -1 = do not write."""
    if cos_sin is not None:
        q, k = rotate(q, cos_sin, positions), rotate(k, cos_sin, positions)
    written = slot_mapping >= 0
    slots = slot_mapping[written]
    block_size = k_cache.shape[2]
    block_ids, offsets = slots // block_size, slots % block_size
    for cache, x, scale in ((k_cache, k, k_scale), (v_cache, v, v_scale)):
        cache[block_ids, :, offsets] = _stored(x[written], cache.dtype, scale)
    return q


def _stored(x: torch.Tensor, dtype: torch.dtype, scale: float) -> torch.Tensor:
    """x as a cache holds it; float8 in units of the scale, and no larger than the format's largest number."""
    if dtype != torch.float8_e4m3fn:
        return x.to(dtype)
    largest = torch.finfo(dtype).max
    return (x.float() * (1 / scale)).clamp(-largest, largest).to(dtype)
