"""Owns float8 e4m3 as Triton kernels read and write it: by its bits, which is exact, and the same on every GPU.

Ampere has no instructions for the format and Triton's own conversion refuses it there. A tensor of it is passed as uint8.
"""

from __future__ import annotations

from kernels.triton_runtime import tl, triton

# What from_fp8 leaves to its caller to multiply by: the ratio of the exponents' biases, 2^(15 - 7).
FP8_BITS_SCALE = 256.0


@triton.jit
def from_fp8(bits):
    """uint8 -> float16 of 1 / 256 of the value: sign, exponent and fraction stand in the same order, only apart."""
    wide = bits.to(tl.uint16)
    return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)


@triton.jit
def to_fp8(x):
    """float32 -> uint8, rounded to the nearest and ties to even; what is larger than 448 becomes 448, NaN stays NaN."""
    magnitude = tl.minimum(tl.abs(x), 448.0)
    bits = magnitude.to(tl.uint32, bitcast=True)
    # 20 bits of the fraction go; adding half of their last place, less one where the bit before is 0, rounds them away.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 steps are of 2^-9, which is the last place of a float32 near 2^14: the addition rounds.
    small = (magnitude + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0.015625, small, normal)
    code = tl.where(x != x, 0x7F, code)
    return (code | ((x.to(tl.uint32, bitcast=True) >> 24) & 0x80)).to(tl.uint8)
