"""Linear equals its definition on every path, at every number of tokens, for odd shapes."""

from __future__ import annotations

import pytest
import torch

from kernels.linear import linear, reference
from tests.kernels.closeness import assert_close

TOKENS = [0, 1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 48, 63, 65, 100, 257]
SHAPES = [(64, 96), (896, 130), (1, 1), (3, 5), (33, 17), (127, 61), (161, 9), (80, 323)]  # Din, Dout


def operands(num_tokens: int, din: int, dout: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(n, din, generator=generator).to(dtype) for n in (num_tokens, dout))
    return x, weight, torch.randn(dout, generator=generator).to(dtype)


@pytest.mark.parametrize("num_tokens", TOKENS, ids=lambda t: f"T{t}")
def test_linear_equals_reference(path: str, dtype: torch.dtype, num_tokens: int) -> None:
    for din, dout in SHAPES:
        x, weight, bias = operands(num_tokens, din, dout, dtype)
        assert_close(linear(x, weight, bias), reference.linear(x, weight, bias), f"{din}->{dout} with bias")
        assert_close(linear(x, weight), reference.linear(x, weight), f"{din}->{dout}")


def test_vocabulary_of_odd_size(path: str, dtype: torch.dtype) -> None:
    for num_tokens in (1, 3, 17):
        x, weight, _ = operands(num_tokens, 80, 32003, dtype)
        assert_close(linear(x, weight), reference.linear(x, weight), f"T{num_tokens}")


def test_slices_of_wider_tensors(path: str, dtype: torch.dtype) -> None:
    """Rows may lie apart, and begin at any element."""
    for num_tokens in (1, 4, 20):
        x, weight, bias = operands(num_tokens, 99, 70, dtype)
        x, weight, bias = x[:, 3:93], weight[5:67, 1:91], bias[5:67]
        assert_close(linear(x, weight, bias), reference.linear(x, weight, bias), f"T{num_tokens}")


def test_transposed_weight(path: str, dtype: torch.dtype) -> None:
    x, weight, _ = operands(6, 40, 24, dtype)
    weight = weight.T.contiguous().T
    assert_close(linear(x, weight), reference.linear(x, weight))


def test_same_input_gives_the_same_bits(path: str) -> None:
    for num_tokens in (1, 8, 33):
        x, weight, bias = operands(num_tokens, 517, 261, torch.bfloat16)
        first = linear(x, weight, bias)
        assert all(torch.equal(first, linear(x, weight, bias)) for _ in range(5))


def test_nan_stays_in_its_row(path: str, dtype: torch.dtype) -> None:
    """One request's NaN never reaches another request of the batch."""
    for num_tokens in (5, 16, 40):
        x, weight, _ = operands(num_tokens, 70, 50, dtype)
        expected = linear(x, weight)
        x[2] = torch.nan
        actual = linear(x, weight)
        others = [row for row in range(num_tokens) if row != 2]
        assert actual[2].isnan().all()
        assert torch.equal(actual[others], expected[others])


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="linear takes x"):
        linear(torch.zeros(2, 3), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="bias"):
        linear(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3))
