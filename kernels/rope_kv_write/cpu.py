"""Owns RoPE with the cache write on the CPU: the native kernel in one pass; the reference where there is none."""

from __future__ import annotations

import torch

from kernels import native
from kernels.rope_kv_write import reference


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
    """Shapes as in the public call. Takes the native kernel where formats and layout are what it reads."""
    num_tokens, num_heads, head_dim = q.shape
    num_blocks, num_kv_heads, block_size, _ = k_cache.shape
    (q_stride, *q_inner), (k_stride, *k_inner), (v_stride, *v_inner) = q.stride(), k.stride(), v.stride()
    dtype = q.dtype
    code = native.codes.get(dtype)
    dense = [head_dim, 1]  # heads side by side; tokens may lie apart, as in a fused projection
    if (
        code is None
        or not k.dtype == v.dtype == k_cache.dtype == v_cache.dtype == dtype
        or not (q_inner == dense and k_inner == dense and v_inner == dense)
        or not (k_cache.is_contiguous() and v_cache.is_contiguous())
        or not slot_mapping.dtype == positions.dtype == torch.int64
        or not (slot_mapping.is_contiguous() and positions.is_contiguous())
        or not (cos_sin is None or (cos_sin.dtype == torch.float32 and cos_sin.is_contiguous()))
    ):
        return reference.rope_kv_write(
            q, k, v, cos_sin, positions, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale
        )
    if cos_sin is None:
        rotated, table, num_positions, rope_dim = q, 0, 0, 0
    else:
        rotated, table = q.new_empty(num_tokens, num_heads, head_dim), cos_sin.data_ptr()
        num_positions, rope_dim = cos_sin.shape
    native.lib.rope_kv_write(
        torch.get_num_threads(),
        code,
        q.data_ptr(),
        q_stride,
        k.data_ptr(),
        k_stride,
        v.data_ptr(),
        v_stride,
        table,
        num_positions,
        rope_dim,
        positions.data_ptr(),
        slot_mapping.data_ptr(),
        rotated.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        num_tokens,
        num_heads,
        num_kv_heads,
        head_dim,
        num_blocks,
        block_size,
    )
    return rotated
