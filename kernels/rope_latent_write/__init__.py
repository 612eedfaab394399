"""Rotates queries and the shared key, and writes latents; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.rope_latent_write import reference
from kernels.triton_path import use_triton

__all__ = ["rope_latent_write"]


def rope_latent_write(
    q: torch.Tensor,
    k: torch.Tensor,
    latent: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """q (T, H, P), k (T, P), latent (T, C), positions and slot_mapping (T) int64 -> q rotated (T, H, P).

    cos_sin (positions, P) float32 holds cosines in its first half and sines in its second. The latent and the rotated key
    go to cache (B, S, C + P) at slot block * S + offset; slot -1 writes nothing. Raises IndexError for a position outside
    cos_sin or a slot outside the cache, except from a GPU, which is not asked.
    """
    if (
        q.dim() != 3
        or not q.shape[2] == k.shape[1] == cos_sin.shape[1]
        or cache.dim() != 3
        or cache.shape[2] != latent.shape[1] + k.shape[1]
        or not len(q) == len(k) == len(latent) == len(positions) == len(slot_mapping)
    ):
        raise ValueError(
            "rope_latent_write takes q (T, H, P), k (T, P), latent (T, C), cos_sin (positions, P), a cache (B, S, C + P), "
            f"positions and slot_mapping (T), got {[tuple(t.shape) for t in (q, k, latent, cos_sin, cache)]}, "
            f"{len(positions)} positions and {len(slot_mapping)} slots"
        )
    if use_triton(q):
        from kernels.rope_latent_write import kernel

        return kernel.rope_latent_write(q, k, latent, cos_sin, positions, cache, slot_mapping)
    return reference.rope_latent_write(q, k, latent, cos_sin, positions, cache, slot_mapping)
