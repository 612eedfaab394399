"""RMSNorm and LayerNorm equal their definitions; with a residual, the sum is left in it."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from kernels import layer_norm as layer_norms
from kernels import rms_norm as rms_norms
from tests.kernels.closeness import assert_close

SIZES = [3, 15, 16, 63, 80, 128, 896, 1000]
ROWS = [0, 1, 3, 33]


def normal(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("size", SIZES, ids=lambda d: f"D{d}")
def test_rms_norm_equals_reference(path: str, dtype: torch.dtype, size: int) -> None:
    weight = normal(size, dtype=dtype, seed=1)
    for rows in ROWS:
        x, residual = normal(rows, size, dtype=dtype), normal(rows, size, dtype=dtype, seed=2)
        assert_close(rms_norms.rms_norm(x, weight, 1e-6), rms_norms.reference.rms_norm(x, weight, 1e-6))
        normed, total = rms_norms.add_rms_norm(x, residual.clone(), weight, 1e-6)
        expected = rms_norms.reference.add_rms_norm(x, residual.clone(), weight, 1e-6)
        assert_close(normed, expected[0], "normed")
        assert torch.equal(total, expected[1])


@pytest.mark.parametrize("size", SIZES, ids=lambda d: f"D{d}")
def test_layer_norm_equals_reference(path: str, dtype: torch.dtype, size: int) -> None:
    weight, bias = normal(size, dtype=dtype, seed=1), normal(size, dtype=dtype, seed=3)
    for rows in ROWS:
        x, residual = normal(rows, size, dtype=dtype), normal(rows, size, dtype=dtype, seed=2)
        for w, b in ((weight, bias), (weight, None), (None, None)):
            actual = layer_norms.layer_norm(x, w, b, 1e-5)
            assert_close(actual, layer_norms.reference.layer_norm(x, w, b, 1e-5))
        normed, total = layer_norms.add_layer_norm(x, residual.clone(), weight, bias, 1e-5)
        expected = layer_norms.reference.add_layer_norm(x, residual.clone(), weight, bias, 1e-5)
        assert_close(normed, expected[0], "normed")
        assert torch.equal(total, expected[1])


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_heads_of_a_wider_tensor(path: str, dtype: torch.dtype, name: str) -> None:
    """Norm over head_dim of queries that are a slice of a fused projection."""
    qkv = normal(5, 7 * 80, dtype=dtype)
    q = qkv[:, 80:400].view(5, 4, 80)
    weight = normal(80, dtype=dtype, seed=1)
    if name == "rms_norm":
        assert_close(rms_norms.rms_norm(q, weight, 1e-6), rms_norms.reference.rms_norm(q, weight, 1e-6))
    else:
        actual = layer_norms.layer_norm(q, weight, None, 1e-6)
        assert_close(actual, layer_norms.reference.layer_norm(q, weight, None, 1e-6))


def test_residual_is_overwritten_on_every_path(path: str) -> None:
    for add_norm, parameters in (
        (rms_norms.add_rms_norm, (torch.ones(6), 1e-6)),
        (layer_norms.add_layer_norm, (torch.ones(6), None, 1e-6)),
    ):
        x, residual = normal(3, 6, dtype=torch.float32), normal(3, 6, dtype=torch.float32, seed=2)
        total = x + residual
        returned = add_norm(x, residual, *parameters)[1]
        assert returned is residual
        assert torch.equal(residual, total)


def test_rms_norm_rounds_as_transformers_does(path: str) -> None:
    x, weight = normal(20, 896, dtype=torch.bfloat16), normal(896, dtype=torch.bfloat16, seed=1)
    module = LlamaRMSNorm(896, eps=1e-6).to(torch.bfloat16)
    module.weight.data = weight
    with torch.no_grad():
        same = rms_norms.rms_norm(x, weight, 1e-6) == module(x)
    assert same.float().mean() > 0.999  # the sum of squares may differ in its last bit


def test_weight_of_another_dtype(path: str) -> None:
    x, weight = normal(4, 70, dtype=torch.bfloat16), normal(70, dtype=torch.float32, seed=1)
    assert_close(rms_norms.rms_norm(x, weight, 1e-6), rms_norms.reference.rms_norm(x, weight, 1e-6))
    actual = layer_norms.layer_norm(x, weight, weight, 1e-6)
    assert_close(actual, layer_norms.reference.layer_norm(x, weight, weight, 1e-6))


def test_large_values_do_not_overflow(path: str) -> None:
    x = torch.full((2, 100), 6e4, dtype=torch.float16)
    assert torch.isfinite(rms_norms.rms_norm(x, torch.ones(100, dtype=torch.float16), 1e-6)).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        rms_norms.rms_norm(torch.zeros(2, 3), torch.zeros(4), 1e-6)
    with pytest.raises(ValueError, match="residual"):
        rms_norms.add_rms_norm(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(3), 1e-6)
    with pytest.raises(ValueError, match="bias"):
        layer_norms.layer_norm(torch.zeros(2, 3), None, torch.zeros(4), 1e-6)
