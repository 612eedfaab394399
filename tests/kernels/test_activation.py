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


@pytest.mark.parametrize("bound", [0.0, 0.5])
def test_fatrelu_lets_through_what_is_above_its_bound(dtype: torch.dtype, bound: float) -> None:
    x = torch.tensor([-3.0, 0.0, 0.25, 0.5, 0.75, 4.0], dtype=dtype)
    expected = torch.where(x > bound, x, 0)
    assert torch.equal(activation.act("fatrelu", x, bound), expected)
    gate_up = torch.cat((x, torch.full_like(x, 2.0)))[None]
    assert torch.equal(activation.act_and_mul("fatrelu", gate_up, bound), 2 * expected[None])


def test_gegelu_bounds_gate_and_up_before_it_adds_one() -> None:
    gate = torch.tensor([[-9.0, -1.0, 0.5, 3.0, 9.0]])
    up = torch.tensor([[9.0, -9.0, 0.25, 1.0, -1.0]])
    bounded, factor = torch.tensor([[-9.0, -1.0, 0.5, 3.0, 4.0]]), torch.tensor([[5.0, -3.0, 1.25, 2.0, 0.0]])
    expected = bounded / (1 + torch.exp(-1.702 * bounded)) * factor
    torch.testing.assert_close(activation.act_and_mul("gegelu", torch.cat((gate, up), 1), 4.0), expected)


def test_a_bound_is_for_those_that_have_one() -> None:
    x = torch.zeros(1, 4)
    for name, bound in (("silu", 1.0), ("fatrelu", None), ("gegelu", None)):
        with pytest.raises(ValueError, match=name):
            activation.act_and_mul(name, x, bound)
    with pytest.raises(ValueError, match="gegelu"):
        activation.act("gegelu", x, 1.0)
