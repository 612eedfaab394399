"""The Triton products equal their definitions for odd shapes, heads that are slices, and weights that lie either way."""

from __future__ import annotations

import pytest
import torch

from kernels.batch_invariance import batch_invariant
from kernels.head_linear import head_linear
from kernels.head_linear import reference as head_reference
from kernels.linear import linear, reference
from tests.kernels.closeness import assert_close


def normal(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


@pytest.mark.parametrize("invariant", [False, True], ids=["library", "invariant"])
@pytest.mark.parametrize(
    ("num_tokens", "din", "dout"), [(0, 8, 8), (1, 896, 80), (63, 130, 257), (130, 64, 33)], ids=str
)
def test_linear_equals_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, num_tokens: int, din: int, dout: int, invariant: bool
) -> None:
    x = normal(num_tokens, din, dtype=triton_dtype, device=triton_device)
    weight = normal(dout, din, dtype=triton_dtype, device=triton_device, seed=1) * din**-0.5
    for bias in (None, normal(dout, dtype=triton_dtype, device=triton_device, seed=2)):
        with batch_invariant(invariant):
            actual = linear(x, weight, bias)
        assert_close(actual, reference.linear(x, weight, bias))


def test_a_slice_is_multiplied_where_it_lies(triton_device: torch.device) -> None:
    wide = normal(9, 100, dtype=torch.float32, device=triton_device)
    weight = normal(7, 90, dtype=torch.float32, device=triton_device, seed=1)
    for x, w in ((wide[:, 10:], weight), (wide.t()[:, :5], weight[:, :5]), (wide[:, :7], weight[:, :7].t())):
        with batch_invariant():
            assert_close(linear(x, w), reference.linear(x, w))


@pytest.mark.parametrize(
    "shape", [(0, 4, 8, 8), (1, 3, 40, 130), (63, 2, 130, 33)], ids="T{0[0]}-H{0[1]}-{0[2]}-{0[3]}".format
)
def test_head_linear_equals_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    num_tokens, num_heads, din, dout = shape
    x = normal(num_tokens, num_heads, din + 5, dtype=triton_dtype, device=triton_device)[..., 5:]
    weight = normal(num_heads, dout, din, dtype=triton_dtype, device=triton_device, seed=1) * din**-0.5
    expected = head_reference.head_linear(x, weight)
    assert_close(head_linear(x, weight), expected)
    lying = weight.transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(head_linear(x, lying), expected)


def test_mixed_formats_are_refused(triton_device: torch.device) -> None:
    x, weight = (normal(2, 8, dtype=dtype, device=triton_device) for dtype in (torch.float16, torch.float32))
    with batch_invariant(), pytest.raises(ValueError, match="one number format"):
        linear(x, weight)
