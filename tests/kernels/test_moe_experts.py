"""The experts' outputs equal the definition for odd shapes and any share of tokens, and the formula of a single token."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.moe_experts import moe_experts, reference
from tests.kernels.closeness import assert_close

# tokens, hidden size, size of an expert, experts, top_k
SHAPES = [(1, 64, 32, 8, 2), (5, 48, 20, 3, 3), (63, 40, 24, 60, 4), (130, 96, 56, 5, 1), (7, 33, 17, 4, 2)]
IDS = ["T{}-D{}-F{}-E{}-k{}".format(*shape) for shape in SHAPES]


def normal(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, gate_up, down, weights, ids."""
    num_tokens, hidden_size, size, num_experts, top_k = shape
    x = normal(num_tokens, hidden_size, dtype=dtype, seed=1)
    gate_up = normal(num_experts, 2 * size, hidden_size, dtype=dtype, seed=2) * hidden_size**-0.5
    down = normal(num_experts, hidden_size, size, dtype=dtype, seed=3) * size**-0.5
    scores = normal(num_tokens, num_experts, dtype=torch.float32, seed=4).softmax(-1)
    weights, ids = scores.topk(top_k)
    return x, gate_up, down, weights, ids


def check(x, gate_up, down, weights, ids, act: str = "silu") -> None:
    before = x.clone()
    actual = moe_experts(x, gate_up, down, act, weights, ids)
    assert_close(actual, reference.moe_experts(x, gate_up, down, act, weights, ids))
    assert torch.equal(x, before)


@pytest.mark.parametrize("act", ["silu", "gelu"])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_experts_equal_reference(path: str, dtype: torch.dtype, shape: tuple[int, ...], act: str) -> None:
    check(*make_case(shape, dtype), act)


def test_experts_without_tokens_are_never_read(path: str, dtype: torch.dtype) -> None:
    x, gate_up, down, weights, ids = make_case((40, 48, 24, 9, 2), dtype)
    ids = ids % 3 * 3 + torch.tensor([0, 1])  # experts 2, 5 and 8 have none
    gate_up[2::3], down[2::3] = torch.nan, torch.nan
    used = [e for e in range(9) if e % 3 != 2]
    actual = moe_experts(x, gate_up, down, "silu", weights, ids)
    order = torch.tensor([used.index(e) if e in used else -1 for e in range(9)])
    assert_close(actual, reference.moe_experts(x, gate_up[used], down[used], "silu", weights, order[ids]))


def test_all_tokens_may_choose_the_same_experts(path: str, dtype: torch.dtype) -> None:
    x, gate_up, down, weights, _ = make_case((50, 64, 32, 6, 2), dtype)
    check(x, gate_up, down, weights, torch.tensor([5, 0]).expand(50, 2))
    check(x, gate_up, down, weights[:, :1], torch.full((50, 1), 3))


def test_one_token_is_the_weighted_sum_of_its_experts(path: str) -> None:
    x, gate_up, down, weights, ids = make_case((1, 64, 32, 8, 3), torch.float32)
    want = torch.zeros(1, 64)
    for weight, expert in zip(weights[0].tolist(), ids[0].tolist(), strict=True):
        gate, up = F.linear(x, gate_up[expert]).chunk(2, -1)
        want += weight * F.linear(F.silu(gate) * up, down[expert])
    assert_close(moe_experts(x, gate_up, down, "silu", weights, ids), want)


def test_a_token_does_not_depend_on_its_neighbours(path: str) -> None:
    x, gate_up, down, weights, ids = make_case((40, 64, 32, 5, 2), torch.float32)
    whole = moe_experts(x, gate_up, down, "silu", weights, ids)
    for t in (0, 17, 39):
        row = slice(t, t + 1)
        assert_close(moe_experts(x[row], gate_up, down, "silu", weights[row], ids[row]), whole[row])


def test_an_empty_batch_gives_nothing(path: str, dtype: torch.dtype) -> None:
    x, gate_up, down, weights, ids = make_case((3, 64, 32, 4, 2), dtype)
    assert moe_experts(x[:0], gate_up, down, "silu", weights[:0], ids[:0]).shape == (0, 64)


def test_wrong_shapes_are_refused() -> None:
    x, gate_up, down, weights, ids = make_case((3, 64, 32, 4, 2), torch.float32)
    for args in (
        (x[:, :32], gate_up, down, "silu", weights, ids),
        (x, gate_up, down[:, :, :16], "silu", weights, ids),
        (x, gate_up, down, "silu", weights[:, :1], ids),
        (x, gate_up, down, "silu", weights[:2], ids[:2]),
    ):
        with pytest.raises(ValueError, match="moe_experts takes"):
            moe_experts(*args)
    with pytest.raises(ValueError, match="'gegelu' of experts"):  # which takes a bound, and experts have none
        moe_experts(x, gate_up, down, "gegelu", weights, ids)
