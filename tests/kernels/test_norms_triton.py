"""The Triton norms equal their definitions for rows of any length, alone, after a residual add, and for heads of a slice."""

from __future__ import annotations

import pytest
import torch

from kernels import layer_norm as layer_norms
from kernels import rms_norm as rms_norms
from tests.kernels.closeness import assert_close


def normal(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize(
    ("rows", "size"), [(0, 64), (1, 4096), (63, 896), (5, 80), (3, 12288), (2, 3), (7, 1001)], ids=str
)
def test_norms_equal_reference(triton_device: torch.device, triton_dtype: torch.dtype, rows: int, size: int) -> None:
    x, residual = (normal(rows, size, dtype=triton_dtype, device=triton_device, seed=seed) for seed in (0, 2))
    weight, bias = (normal(size, dtype=triton_dtype, device=triton_device, seed=seed) for seed in (1, 3))
    for w in (weight, None):
        assert_close(rms_norms.rms_norm(x, w, 1e-6), rms_norms.reference.rms_norm(x, w, 1e-6))
        normed, total = rms_norms.add_rms_norm(x, residual.clone(), w, 1e-6)
        expected = rms_norms.reference.add_rms_norm(x, residual.clone(), w, 1e-6)
        assert_close(normed, expected[0], "normed")
        assert torch.equal(total, expected[1])
    for w, b in ((weight, bias), (weight, None), (None, None)):
        assert_close(layer_norms.layer_norm(x, w, b, 1e-5), layer_norms.reference.layer_norm(x, w, b, 1e-5))
        normed, total = layer_norms.add_layer_norm(x, residual.clone(), w, b, 1e-5)
        expected = layer_norms.reference.add_layer_norm(x, residual.clone(), w, b, 1e-5)
        assert_close(normed, expected[0], "normed")
        assert torch.equal(total, expected[1])


def test_heads_of_a_slice_are_normalised_where_they_lie(triton_device: torch.device, triton_dtype: torch.dtype) -> None:
    q = normal(7, 9 * 80, dtype=triton_dtype, device=triton_device)[:, 80:400].view(7, 4, 80)
    weight = normal(80, dtype=triton_dtype, device=triton_device, seed=1)
    assert_close(rms_norms.rms_norm(q, weight, 1e-6), rms_norms.reference.rms_norm(q, weight, 1e-6))
    assert_close(layer_norms.layer_norm(q, weight, None, 1e-6), layer_norms.reference.layer_norm(q, weight, None, 1e-6))


def test_a_residual_that_is_a_slice_is_overwritten(triton_device: torch.device) -> None:
    for add_norm, parameters in (
        (rms_norms.add_rms_norm, (torch.ones(6, device=triton_device), 1e-6)),
        (layer_norms.add_layer_norm, (torch.ones(6, device=triton_device), None, 1e-6)),
    ):
        x, wide = (normal(3, n, dtype=torch.float32, device=triton_device, seed=n) for n in (6, 9))
        before = wide.clone()
        add_norm(x, wide[:, 1:7], *parameters)
        assert torch.equal(wide[:, 1:7], before[:, 1:7] + x)
        assert torch.equal(wide[:, ::8], before[:, ::8])


def test_bfloat16_is_widened_before_anything_is_added(triton_device: torch.device) -> None:
    """The interpreter cuts bfloat16 off where it should round, so that an element may be one unit away."""
    x, residual = (normal(5, 96, dtype=torch.bfloat16, device=triton_device, seed=seed) for seed in (0, 1))
    normed, total = rms_norms.add_rms_norm(x, residual.clone(), None, 1e-6)
    torch.testing.assert_close(total, x + residual, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(normed, rms_norms.reference.rms_norm(total, None, 1e-6), rtol=2**-7, atol=1e-6)
    bias = normal(96, dtype=torch.bfloat16, device=triton_device, seed=2)
    expected = layer_norms.reference.layer_norm(x, None, bias, 1e-6)
    torch.testing.assert_close(layer_norms.layer_norm(x, None, bias, 1e-6), expected, rtol=2**-6, atol=1e-2)
