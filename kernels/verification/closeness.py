"""Says when a kernel's result is close enough to its reference: one table of tolerances for all of them."""

from __future__ import annotations

import torch

# Largest error of one element, relative to the largest element of its row, and relative RMS error of the whole. Half
# a unit in the last place is 2^-9 of bfloat16 and 2^-12 of float16: an element may be rounded to the neighbour.
MAX_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
RMS_ERROR = {torch.float32: 3e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def errors(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Largest and RMS error of actual (..., N), row by row as above; infinite where it is not a number."""
    if not actual.numel():
        return 0.0, 0.0
    if not torch.isfinite(actual).all():
        return torch.inf, torch.inf
    error, expected64 = actual.double() - expected.double(), expected.double()
    scale = expected64.abs().amax(-1, keepdim=True).clamp(min=1e-6)
    rms = (error.square().mean() / expected64.square().mean().clamp(min=1e-12)).sqrt()
    return (error.abs() / scale).max().item(), rms.item()
