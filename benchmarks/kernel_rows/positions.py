"""Rows of RoPE with the write of the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.kernel_rows import Place, Row
from kernels.rope_kv_write import reference, rope_kv_write
from kernels.rope_latent_write import rope_latent_write

PAGE = 16
TOKENS = (1, 64, 8192)


def _where(place: Place, num_tokens: int, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A table of cosines and sines, positions and slots."""
    angles = torch.randn(8192, dim // 2, device=place.device)
    positions, slots = (torch.randperm(8192, device=place.device)[:num_tokens] for _ in range(2))
    return torch.cat((angles.cos(), angles.sin()), 1), positions, slots


def rope_and_cache(place: Place) -> Iterator[Row]:
    for tokens in TOKENS:
        num_tokens = place.scaled(tokens)
        qkv = place.normal(num_tokens, 48, 128)
        q, k, v = qkv.split((32, 8, 8), 1)
        k_cache, v_cache = place.normal(2, 8192 // PAGE, 8, PAGE, 128)
        cos_sin, positions, slots = _where(place, num_tokens, 128)

        def torch_ops(q=q, k=k, v=v, cos_sin=cos_sin, positions=positions, slots=slots, caches=(k_cache, v_cache)):
            for cache, x in zip(caches, (reference.rotate(k, cos_sin, positions), v)):
                cache[slots // PAGE, :, slots % PAGE] = x
            return reference.rotate(q, cos_sin, positions)

        yield Row(
            f"rope and cache write T={tokens} H=32 G=8 K=128",
            lambda q=q, k=k, v=v, k_cache=k_cache, v_cache=v_cache, where=(cos_sin, positions), slots=slots: (
                rope_kv_write(q, k, v, *where, k_cache, v_cache, slots)
            ),
            2 * qkv.numel() * qkv.element_size() + num_tokens * (128 * 4 + 16),
            compiled={"torch.compile": torch_ops},
        )


def rope_and_latents(place: Place) -> Iterator[Row]:
    for tokens in TOKENS:
        num_tokens = place.scaled(tokens)
        q, k, latent = place.normal(num_tokens, 16, 64), place.normal(num_tokens, 64), place.normal(num_tokens, 512)
        cache = place.normal(8192 // PAGE, PAGE, 576)
        cos_sin, positions, slots = _where(place, num_tokens, 64)

        def torch_ops(q=q, k=k, latent=latent, cos_sin=cos_sin, positions=positions, slots=slots, cache=cache):
            rotated = reference.rotate(k[:, None], cos_sin, positions)[:, 0]
            cache.view(-1, 576)[slots] = torch.cat((latent, rotated), 1)
            return reference.rotate(q, cos_sin, positions)

        yield Row(
            f"rope and latent write T={tokens} H=16",
            lambda q=q, k=k, latent=latent, where=(cos_sin, positions), cache=cache, slots=slots: rope_latent_write(
                q, k, latent, *where, cache, slots
            ),
            2 * num_tokens * (16 * 64 + 576) * q.element_size() + num_tokens * (64 * 4 + 16),
            compiled={"torch.compile": torch_ops},
        )


ROWS = (rope_and_cache, rope_and_latents)
