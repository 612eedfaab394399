"""The product of each head with its matrix equals its definition, for slices of wider tensors too."""

from __future__ import annotations

import pytest
import torch

from kernels.head_linear import head_linear, reference
from tests.kernels.closeness import assert_close

# tokens, heads, inputs, outputs
SHAPES = [(1, 16, 128, 512), (5, 3, 20, 33), (63, 4, 512, 128), (40, 1, 7, 5), (0, 4, 16, 8)]


def normal(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-H{}-in{}-out{}".format(*s))
def test_product_equals_reference(path: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    num_tokens, num_heads, din, dout = shape
    x = normal(num_tokens, num_heads, din + 6, dtype=dtype, seed=1)[..., :din]
    weight = normal(num_heads, dout + 3, din, dtype=dtype, seed=2)[:, 3:] * din**-0.5
    assert_close(head_linear(x, weight), reference.head_linear(x, weight))


def test_each_head_has_its_own_matrix(path: str) -> None:
    x, weight = normal(9, 4, 16, dtype=torch.float32, seed=1), normal(4, 8, 16, dtype=torch.float32, seed=2)
    for head, product in enumerate(head_linear(x, weight).unbind(1)):
        assert_close(product, x[:, head] @ weight[head].T)


def test_wrong_shapes_are_refused() -> None:
    x = torch.zeros(3, 4, 16)
    for weight in (torch.zeros(4, 8, 15), torch.zeros(3, 8, 16), torch.zeros(8, 16)):
        with pytest.raises(ValueError, match="head_linear takes"):
            head_linear(x, weight)
