"""Says when a kernel's result is close enough to its reference: one table of tolerances for all of them."""

from __future__ import annotations

import torch

# Largest error of one element, relative to the largest element of its row, and relative RMS error of the whole. Half
# a unit in the last place is 2^-9 of bfloat16 and 2^-12 of float16: an element may be rounded to the neighbour.
MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
RMS_ERROR = {torch.float32: 3e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str = "result") -> None:
    """actual, expected (..., N), compared row by row."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, name
    if not actual.numel():
        return
    assert torch.isfinite(actual).all(), f"{name} has elements that are not finite"
    error, expected32 = actual.double() - expected.double(), expected.double()
    scale = expected32.abs().amax(-1, keepdim=True).clamp(min=1e-6)
    worst = (error.abs() / scale).max().item()
    rms = (error.square().mean() / expected32.square().mean().clamp(min=1e-12)).sqrt().item()
    assert worst <= MAX_ERROR[actual.dtype], f"{name}: largest relative error {worst:.2e}"
    assert rms <= RMS_ERROR[actual.dtype], f"{name}: relative RMS error {rms:.2e}"
