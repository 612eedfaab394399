"""Float8 that Triton kernels read and write by its bits is what torch makes of the same numbers."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from kernels.triton_fp8 import from_fp8, to_fp8
from kernels.triton_runtime import tl, triton


@triton.jit
def decode(x, out, N: tl.constexpr):
    places = tl.arange(0, N)
    tl.store(out + places, from_fp8(tl.load(x + places)).to(tl.float32))


@triton.jit
def encode(x, out, N: tl.constexpr):
    places = tl.arange(0, N)
    tl.store(out + places, to_fp8(tl.load(x + places)))


def convert(kernel, x: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """One of the two over a row of numbers, a power of two of them."""
    out = torch.empty(x.shape, dtype=dtype, device=device)
    kernel[1,](x.to(device), out, len(x))
    return out.cpu()


def test_every_code_is_read_exactly(triton_device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn).float()
    numbers = values.isfinite()
    assert numbers.sum() == 254
    assert torch.equal((convert(decode, codes, torch.float32, triton_device) * 256)[numbers], values[numbers])


def test_numbers_are_rounded_as_torch_rounds_them(triton_device: torch.device) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    values = values[values.isfinite()].sort().values
    ties = (values[1:] + values[:-1]) / 2
    around = torch.cat((values, ties, ties * (1 + 2**-20), ties * (1 - 2**-20), torch.randn(1500) * 0.01))
    many = torch.cat((around, 60 * torch.randn(4096 - len(around)))).clamp(-448, 448)
    assert torch.equal(
        convert(encode, many, torch.uint8, triton_device), many.to(torch.float8_e4m3fn).view(torch.uint8)
    )


def test_what_is_too_large_becomes_the_largest_and_nan_stays(triton_device: torch.device) -> None:
    x = torch.tensor([449.0, 464.0, 1e30, torch.inf, -465.0, -torch.inf, torch.nan, -0.0])
    values = convert(encode, x, torch.uint8, triton_device).view(torch.float8_e4m3fn).float()
    assert values[:6].tolist() == [448, 448, 448, 448, -448, -448]
    assert values[6].isnan()
    assert values[7] == 0 and values[7].signbit()
