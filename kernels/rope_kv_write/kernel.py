"""Owns RoPE with the write of keys and values in Triton: one launch for all heads of all tokens. Not yet run on a GPU.

Token t's rotated pair i of each head of queries and keys, in float32 and rounded once, with c, s from row positions[t]:
    y[i] = x[i] c[i] - x[i + R/2] s[i],    y[i + R/2] = x[i + R/2] c[i] + x[i] s[i],    y[j] = x[j] from R on

Grid (T, parts): the first ceil(H / BLOCK_H) parts rotate heads of queries, none where nothing rotates; the others write
heads of keys and values to the token's slot. Float8 caches get float32 values divided by their scale.
"""

from __future__ import annotations

import torch

from kernels.triton_fp8 import to_fp8
from kernels.triton_rope import rotate_pairs
from kernels.triton_runtime import Specialization, next_power_of_2, tl, triton

_TILE = 2048  # elements that a program takes at once


@triton.jit
def _store(place, x, inverse_scale, mask, FP8: tl.constexpr):
    if FP8:
        tl.store(place, to_fp8(x.to(tl.float32) * inverse_scale), mask=mask)
    else:
        tl.store(place, x.to(tl.float32).to(place.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def rope_kv_write_kernel(
    q, k, v, cos_sin, positions, k_cache, v_cache, slots, rotated, inverse_k_scale, inverse_v_scale,
    q_stride_t: tl.constexpr, q_stride_h: tl.constexpr, k_stride_t: tl.constexpr, k_stride_h: tl.constexpr,
    v_stride_t: tl.constexpr, v_stride_h: tl.constexpr,
    k_stride_b: tl.constexpr, k_stride_g: tl.constexpr, k_stride_s: tl.constexpr,
    v_stride_b: tl.constexpr, v_stride_g: tl.constexpr, v_stride_s: tl.constexpr,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, ROPE_DIM: tl.constexpr,
    PAGE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
    Q_PARTS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Tensors as in the public call, their heads' numbers dense; rotated (T, H, K) dense.

    BLOCK_P >= ROPE_DIM / 2, BLOCK_R >= HEAD_DIM - ROPE_DIM, BLOCK_K >= HEAD_DIM.
    """
    t = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    HALF: tl.constexpr = ROPE_DIM // 2
    pairs = tl.arange(0, BLOCK_P)[None]
    rest = ROPE_DIM + tl.arange(0, BLOCK_R)[None]
    cos = tl.zeros([1, BLOCK_P], tl.float32)
    sin = cos
    if ROPE_DIM > 0:
        row = cos_sin + tl.load(positions + t) * ROPE_DIM
        cos = tl.load(row + pairs, mask=pairs < HALF, other=0.0)
        sin = tl.load(row + HALF + pairs, mask=pairs < HALF, other=0.0)
    if part < Q_PARTS:
        heads = part * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
        exists = heads < NUM_HEADS
        x = q + t * q_stride_t + heads * q_stride_h
        y = rotated + (t * NUM_HEADS + heads) * HEAD_DIM
        wanted = exists & (pairs < HALF)
        first, second = rotate_pairs(x + pairs, x + HALF + pairs, cos, sin, wanted)
        tl.store(y + pairs, first, mask=wanted)
        tl.store(y + HALF + pairs, second, mask=wanted)
        if ROPE_DIM < HEAD_DIM:
            wanted = exists & (rest < HEAD_DIM)
            tl.store(y + rest, tl.load(x + rest, mask=wanted), mask=wanted)
    else:
        slot = tl.load(slots + t)
        if slot >= 0:
            heads = (part - Q_PARTS) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
            exists = heads < NUM_KV_HEADS
            x = k + t * k_stride_t + heads * k_stride_h
            y = k_cache + slot // PAGE * k_stride_b + slot % PAGE * k_stride_s + heads * k_stride_g
            if ROPE_DIM > 0:
                wanted = exists & (pairs < HALF)
                first, second = rotate_pairs(x + pairs, x + HALF + pairs, cos, sin, wanted)
                _store(y + pairs, first, inverse_k_scale, wanted, FP8)
                _store(y + HALF + pairs, second, inverse_k_scale, wanted, FP8)
            if ROPE_DIM < HEAD_DIM:
                wanted = exists & (rest < HEAD_DIM)
                _store(y + rest, tl.load(x + rest, mask=wanted), inverse_k_scale, wanted, FP8)
            columns = tl.arange(0, BLOCK_K)[None]
            wanted = exists & (columns < HEAD_DIM)
            x = v + t * v_stride_t + heads * v_stride_h + columns
            y = v_cache + slot // PAGE * v_stride_b + slot % PAGE * v_stride_s + heads * v_stride_g + columns
            _store(y, tl.load(x, mask=wanted), inverse_v_scale, wanted, FP8)


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
    k_scale: float,
    v_scale: float,
) -> torch.Tensor:
    """Shapes as in the public call; an index out of range is not noticed. Raises ValueError for heads that are not dense."""
    if not q.stride(2) == k.stride(2) == v.stride(2) == k_cache.stride(3) == v_cache.stride(3) == 1:
        raise ValueError("rope_kv_write reads and writes the numbers of a head as one: they must be dense")
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    rotated = q if cos_sin is None else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not num_tokens:
        return rotated
    if k_cache.dtype == torch.float8_e4m3fn:
        k_cache, v_cache = k_cache.view(torch.uint8), v_cache.view(torch.uint8)
    sizes = _sizes(num_heads, num_kv_heads, head_dim, 0 if cos_sin is None else cos_sin.shape[1], k_cache.shape[2])
    rope_kv_write_kernel[num_tokens, sizes["Q_PARTS"] + triton.cdiv(num_kv_heads, sizes["BLOCK_H"])](
        q, k, v, cos_sin, positions, k_cache, v_cache, slot_mapping, rotated, 1 / k_scale, 1 / v_scale,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *k_cache.stride()[:3], *v_cache.stride()[:3],
        **sizes, FP8=k_cache.dtype == torch.uint8, num_warps=4,
    )  # fmt: skip
    return rotated


def _sizes(num_heads: int, num_kv_heads: int, head_dim: int, rope_dim: int, page: int) -> dict[str, int]:
    """What the kernel is compiled for, of a model's sizes."""
    block_h = min(next_power_of_2(num_heads), max(1, _TILE // next_power_of_2(head_dim)))
    return {
        "NUM_HEADS": num_heads, "NUM_KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim, "ROPE_DIM": rope_dim, "PAGE": page,
        "BLOCK_H": block_h, "BLOCK_P": next_power_of_2(max(rope_dim // 2, 1)),
        "BLOCK_R": next_power_of_2(max(head_dim - rope_dim, 1)), "BLOCK_K": next_power_of_2(head_dim),
        "Q_PARTS": triton.cdiv(num_heads, block_h) if rope_dim else 0,
    }  # fmt: skip


def _specialization(name: str, head_dim: int, rope_dim: int, cache: str = "*bf16") -> Specialization:
    """For 32 query and 8 kv heads that lie in one projection, and pages of 16."""
    token, page = 48 * head_dim, 8 * 16 * head_dim
    return Specialization(
        name=name,
        kernel=rope_kv_write_kernel,
        types={
            **dict.fromkeys(("q", "k", "v", "rotated"), "*bf16"), **dict.fromkeys(("k_cache", "v_cache"), cache),
            **dict.fromkeys(("positions", "slots"), "*i64"), **({"cos_sin": "*fp32"} if rope_dim else {}),
            **dict.fromkeys(("inverse_k_scale", "inverse_v_scale"), "fp32"),
        },
        constants={
            **_sizes(32, 8, head_dim, rope_dim, 16), "FP8": cache == "*u8", **({} if rope_dim else {"cos_sin": None}),
            **dict.fromkeys(("q_stride_t", "k_stride_t", "v_stride_t"), token),
            **dict.fromkeys(("q_stride_h", "k_stride_h", "v_stride_h"), head_dim),
            **dict.fromkeys(("k_stride_b", "v_stride_b"), page),
            **dict.fromkeys(("k_stride_g", "v_stride_g"), 16 * head_dim),
            **dict.fromkeys(("k_stride_s", "v_stride_s"), head_dim),
        },
    )  # fmt: skip


COMPILED = [
    _specialization("K128", 128, 128),
    _specialization("K128-fp8", 128, 128, "*u8"),
    _specialization("K80-partial", 80, 32),
    _specialization("K64-unrotated", 64, 0),
]
