"""Asserts that a kernel's result is close enough to its reference, as kernels/verification/closeness.py says."""

from __future__ import annotations

import torch

from kernels.verification.closeness import MAX_ERROR, RMS_ERROR, errors


def assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str = "result") -> None:
    """actual, expected (..., N), compared row by row."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape, name
    assert torch.isfinite(actual).all(), f"{name} has elements that are not finite"
    worst, rms = errors(actual, expected)
    assert worst <= MAX_ERROR[actual.dtype], f"{name}: largest relative error {worst:.2e}"
    assert rms <= RMS_ERROR[actual.dtype], f"{name}: relative RMS error {rms:.2e}"
