"""Defines rotary position embedding with the write of latents into the paged cache, in plain torch."""

from __future__ import annotations

import torch

from kernels.rope_kv_write.reference import rotate


def rope_latent_write(
    q: torch.Tensor,
    k: torch.Tensor,
    latent: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """q (T, H, P), k (T, P), latent (T, C), cache (B, S, C + P), slot_mapping (T): block * S + offset, -1 = do not write."""
    rotated = rotate(torch.cat((q, k[:, None]), 1), cos_sin, positions)  # (T, H + 1, P)
    entries = torch.cat((latent, rotated[:, -1]), -1).to(cache.dtype)  # (T, C + P)
    written = slot_mapping >= 0
    cache.view(-1, cache.shape[2])[slot_mapping[written]] = entries[written]
    return rotated[:, :-1]
