"""The Triton activations equal their definitions, alone and as gates, for odd sizes, slices and numbers far from zero."""

from __future__ import annotations

import pytest
import torch

from kernels.activation import act, act_and_mul, reference
from tests.kernels.closeness import assert_close

PLAIN = [(name, None) for name in reference.ACTIVATIONS] + [("fatrelu", 0.3)]
GATED = [*PLAIN, ("gegelu", 1.5)]


def spread(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))).to(device, dtype)


@pytest.mark.parametrize(("name", "bound"), PLAIN, ids=str)
def test_activations_equal_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, name: str, bound: float | None
) -> None:
    for shape in ((0, 5), (1, 1), (63, 100), (1, 2049)):
        x = spread(*shape, dtype=triton_dtype, device=triton_device)
        assert_close(act(name, x, bound), reference.act(name, x, bound))


@pytest.mark.parametrize(("name", "bound"), GATED, ids=str)
def test_gates_equal_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, name: str, bound: float | None
) -> None:
    for rows, size in ((0, 8), (1, 1025), (63, 17)):
        x = spread(rows, 2 * size, dtype=triton_dtype, device=triton_device)
        assert_close(act_and_mul(name, x, bound), reference.act_and_mul(name, x, bound))


def test_a_slice_is_read_where_it_lies(triton_device: torch.device) -> None:
    x = spread(5, 100, dtype=torch.float32, device=triton_device)
    for part in (x[:, 10:90], x.t()[:, :4]):
        assert_close(act_and_mul("silu", part), reference.act_and_mul("silu", part))
        assert_close(act("gelu", part), reference.act("gelu", part))


@pytest.mark.parametrize("name", list(reference.ACTIVATIONS))
def test_large_numbers_neither_overflow_nor_vanish(triton_device: torch.device, name: str) -> None:
    x = torch.tensor([[-1e4, -100.0, -20.0, 20.0, 100.0, 1e4]], device=triton_device)
    torch.testing.assert_close(act(name, x), reference.act(name, x), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "bound"), GATED, ids=str)
def test_nan_is_kept(triton_device: torch.device, name: str, bound: float | None) -> None:
    x = torch.ones(2, 40, device=triton_device)
    x[0, 3] = x[1, 23] = torch.nan
    assert act_and_mul(name, x, bound).isnan().nonzero().tolist() == [[0, 3], [1, 3]]
