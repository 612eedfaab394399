"""Activations equal torch's, alone and as gates."""

from __future__ import annotations

import pytest
import torch

from kernels import activation
from kernels.activation.reference import ACTIVATIONS
from tests.kernels.closeness import assert_close


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gated_activation_equals_reference(path: str, dtype: torch.dtype, name: str) -> None:
    for rows, width in ((0, 8), (1, 1), (1, 4864), (3, 63), (17, 80), (33, 161)):
        x = (4 * torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(rows))).to(dtype)
        assert_close(activation.act_and_mul(name, x), activation.reference.act_and_mul(name, x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_equals_reference_over_its_range(path: str, dtype: torch.dtype, name: str) -> None:
    x = torch.cat((torch.linspace(-12, 12, 2001), torch.tensor([0.0, -0.0, 80.0, -80.0, 1e4, -1e4]))).to(dtype)
    actual, expected = activation.act(name, x), activation.reference.act(name, x)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=1e-6)


def test_named_gates() -> None:
    x = torch.randn(3, 10)
    assert torch.equal(activation.silu_and_mul(x), activation.act_and_mul("silu", x))
    assert torch.equal(activation.gelu_and_mul(x), activation.act_and_mul("gelu", x))
    assert torch.equal(activation.gelu_tanh_and_mul(x), activation.act_and_mul("gelu_tanh", x))


def test_any_shape_keeps_its_shape(path: str) -> None:
    x = torch.randn(2, 3, 5)
    assert_close(activation.act("silu", x), activation.reference.act("silu", x))
    assert_close(activation.act("silu", x.transpose(0, 2)), activation.reference.act("silu", x.transpose(0, 2)))


def test_nan_is_kept(path: str, dtype: torch.dtype) -> None:
    x = torch.ones(2, 40, dtype=dtype)
    x[1, 3] = torch.nan
    for name in ("silu", "gelu", "gelu_tanh"):
        assert activation.act_and_mul(name, x).isnan().sum() == 1


def test_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="swish"):
        activation.act("swish", torch.zeros(3))
