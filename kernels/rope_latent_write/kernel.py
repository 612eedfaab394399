"""Owns RoPE with the write of latents in Triton: one launch for all heads of all tokens. Not yet run on a GPU.

Token t's rotated pair i of each head, in float32 and rounded once, with c, s from row positions[t] of cos_sin:
    y[i] = x[i] c[i] - x[i + P/2] s[i],    y[i + P/2] = x[i + P/2] c[i] + x[i] s[i]

Grid (T, 1 + ceil(H / BLOCK_H)): program (t, 0) writes the token's latent and rotated key to its slot, the others rotate
heads of queries. The last dimension of every tensor is dense.
"""

from __future__ import annotations

import torch

from kernels.triton_rope import rotate_pairs
from kernels.triton_runtime import Specialization, next_power_of_2, tl, triton

_BLOCK_H = 16


@triton.jit
def rope_latent_write_kernel(
    q, k, latent, cos_sin, positions, cache, slots, rotated,
    num_heads,
    q_stride_t: tl.constexpr, q_stride_h: tl.constexpr, k_stride_t: tl.constexpr, latent_stride_t: tl.constexpr,
    ROPE_DIM: tl.constexpr, KV_RANK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """q (T, H, P), k (T, P), latent (T, C), cache (B S, C + P), rotated (T, H, P); BLOCK_P >= P / 2, BLOCK_C >= C."""
    t = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    HALF: tl.constexpr = ROPE_DIM // 2
    pairs = tl.arange(0, BLOCK_P)
    exists = pairs < HALF
    row = cos_sin + tl.load(positions + t) * ROPE_DIM
    cos = tl.load(row + pairs, mask=exists)
    sin = tl.load(row + HALF + pairs, mask=exists)
    if part == 0:
        slot = tl.load(slots + t)
        if slot >= 0:
            entry = cache + slot * (KV_RANK + ROPE_DIM)
            columns = tl.arange(0, BLOCK_C)
            values = tl.load(latent + t * latent_stride_t + columns, mask=columns < KV_RANK)
            tl.store(entry + columns, values.to(tl.float32).to(cache.dtype.element_ty), mask=columns < KV_RANK)
            x = k + t * k_stride_t + pairs
            first, second = rotate_pairs(x, x + HALF, cos, sin, exists)
            tl.store(entry + KV_RANK + pairs, first.to(cache.dtype.element_ty), mask=exists)
            tl.store(entry + KV_RANK + HALF + pairs, second.to(cache.dtype.element_ty), mask=exists)
    else:
        heads = (part - 1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
        wanted = (heads < num_heads) & exists[None]
        x = q + t * q_stride_t + heads * q_stride_h + pairs[None]
        first, second = rotate_pairs(x, x + HALF, cos[None], sin[None], wanted)
        y = rotated + (t * num_heads + heads) * ROPE_DIM + pairs[None]
        tl.store(y, first.to(rotated.dtype.element_ty), mask=wanted)
        tl.store(y + HALF, second.to(rotated.dtype.element_ty), mask=wanted)


def rope_latent_write(
    q: torch.Tensor,
    k: torch.Tensor,
    latent: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Shapes as in the public call; an index out of range is not noticed."""
    num_tokens, num_heads, rope_dim = q.shape
    rotated = q.new_empty(num_tokens, num_heads, rope_dim)
    if num_tokens:
        rope_latent_write_kernel[num_tokens, 1 + triton.cdiv(num_heads, _BLOCK_H)](
            q, k, latent, cos_sin, positions, cache, slot_mapping, rotated,
            num_heads,
            *q.stride()[:2], k.stride(0), latent.stride(0),
            rope_dim, latent.shape[1], next_power_of_2(rope_dim // 2), next_power_of_2(latent.shape[1]), _BLOCK_H,
            num_warps=4,
        )  # fmt: skip
    return rotated


COMPILED = [
    Specialization(
        name="deepseek-v2",
        kernel=rope_latent_write_kernel,
        types={
            **dict.fromkeys(("q", "k", "latent", "cache", "rotated"), "*bf16"),
            "cos_sin": "*fp32",
            **dict.fromkeys(("positions", "slots"), "*i64"),
            "num_heads": "i32",
        },
        constants={
            "q_stride_t": 16 * 192, "q_stride_h": 192, "k_stride_t": 576, "latent_stride_t": 512,
            "ROPE_DIM": 64, "KV_RANK": 512, "BLOCK_P": 32, "BLOCK_C": 512, "BLOCK_H": _BLOCK_H,
        },
        aligned=("num_heads",),
    )
]  # fmt: skip
