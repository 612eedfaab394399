"""The Triton experts equal the definition for odd shapes and any share of tokens, experts without any among them."""

from __future__ import annotations

import pytest
import torch

from kernels.moe_experts import moe_experts, reference
from tests.kernels.closeness import assert_close
from tests.kernels.test_moe_experts import make_case

# tokens, hidden size, size of an expert, experts, top_k
SHAPES = [(1, 64, 32, 8, 2), (63, 40, 24, 60, 4), (130, 96, 56, 5, 1), (7, 33, 17, 4, 2), (90, 128, 80, 2, 2)]
IDS = ["T{}-D{}-F{}-E{}-k{}".format(*shape) for shape in SHAPES]


def case_on(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.to(device) for tensor in make_case(shape, dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_experts_equal_reference(
    triton_device: torch.device, triton_dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    x, gate_up, down, weights, ids = case_on(triton_device, shape, triton_dtype)
    expected = reference.moe_experts(x, gate_up, down, "silu", weights, ids)
    assert_close(moe_experts(x, gate_up, down, "silu", weights, ids), expected)


def test_many_rows_for_each_expert_take_the_larger_tiles(triton_device: torch.device) -> None:
    x, gate_up, down, weights, ids = case_on(triton_device, (140, 96, 40, 2, 2), torch.float16)
    expected = reference.moe_experts(x, gate_up, down, "gelu_tanh", weights, ids)
    assert_close(moe_experts(x, gate_up, down, "gelu_tanh", weights, ids), expected)


def test_experts_without_tokens_are_never_read(triton_device: torch.device) -> None:
    x, gate_up, down, weights, ids = case_on(triton_device, (40, 48, 24, 9, 2), torch.float32)
    ids = ids % 3 * 3 + torch.tensor([0, 1], device=triton_device)  # experts 2, 5 and 8 have none
    expected = reference.moe_experts(x, gate_up, down, "silu", weights, ids)
    gate_up[2::3], down[2::3] = torch.nan, torch.nan
    assert_close(moe_experts(x, gate_up, down, "silu", weights, ids), expected)


def test_all_tokens_may_choose_the_same_experts(triton_device: torch.device) -> None:
    x, gate_up, down, weights, _ = case_on(triton_device, (50, 64, 32, 6, 2), torch.float32)
    ids = torch.tensor([5, 0], device=triton_device).expand(50, 2)
    expected = reference.moe_experts(x, gate_up, down, "silu", weights, ids)
    assert_close(moe_experts(x, gate_up, down, "silu", weights, ids), expected)


def test_an_expert_that_is_elsewhere_adds_nothing(triton_device: torch.device) -> None:
    x, gate_up, down, weights, ids = case_on(triton_device, (9, 64, 32, 6, 3), torch.float32)
    for absent in (-1, 6):
        ids[::2, 1] = absent
        expected = reference.moe_experts(x, gate_up, down, "silu", weights, ids)
        assert_close(moe_experts(x, gate_up, down, "silu", weights, ids), expected)


def test_a_token_does_not_depend_on_its_neighbours(triton_device: torch.device) -> None:
    x, gate_up, down, weights, ids = case_on(triton_device, (40, 64, 32, 5, 2), torch.float32)
    whole = moe_experts(x, gate_up, down, "silu", weights, ids)
    backwards = moe_experts(x.flip(0), gate_up, down, "silu", weights.flip(0), ids.flip(0))
    assert_close(backwards.flip(0), whole)
    assert_close(moe_experts(x[7:8], gate_up, down, "silu", weights[7:8], ids[7:8]), whole[7:8])


def test_an_empty_batch_gives_nothing(triton_device: torch.device) -> None:
    x, gate_up, down, weights, ids = case_on(triton_device, (3, 64, 32, 4, 2), torch.float32)
    assert moe_experts(x[:0], gate_up, down, "silu", weights[:0], ids[:0]).shape == (0, 64)


def test_mixed_formats_are_refused(triton_device: torch.device) -> None:
    x, gate_up, down, weights, ids = case_on(triton_device, (3, 64, 32, 4, 2), torch.float32)
    with pytest.raises(ValueError, match="one number format"):
        moe_experts(x.half(), gate_up, down, "silu", weights, ids)
