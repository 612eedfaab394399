"""Owns the rotation of pairs, as every Triton kernel that applies RoPE computes it."""

from __future__ import annotations

from kernels.triton_runtime import tl, triton


@triton.jit
def rotate_pairs(x1, x2, cos, sin, mask):
    """Pointers to both halves of pairs, float32 cosines and sines -> both halves rotated, rounded once to x's type."""
    a = tl.load(x1, mask=mask).to(tl.float32)
    b = tl.load(x2, mask=mask).to(tl.float32)
    return (a * cos - b * sin).to(x1.dtype.element_ty), (b * cos + a * sin).to(x1.dtype.element_ty)
