"""Owns the slopes of attention with linear biases, by the number of heads."""

from __future__ import annotations

from gpu_executor.models.spec import Alibi


def make_alibi(num_heads: int, max_bias: float = 8.0) -> Alibi:
    """The slopes of Press et al. (2021): 2^(-max_bias i / H) for head i from 1 on.

    Where H is no power of two, the lower power's slopes come first, then every second one of the next power.
    """
    lower = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-max_bias * i / lower) for i in range(1, lower + 1)]
    slopes += [2.0 ** (-max_bias * i / (2 * lower)) for i in range(1, 2 * (num_heads - lower), 2)]
    return Alibi(tuple(slopes))
