"""The Triton routers choose the experts, and give them the weights, that the definition does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kernels.moe_routing import reference, route
from tests.kernels.closeness import assert_close
from tests.kernels.test_moe_routing import ROUTERS


def logits_of(num_tokens: int, num_experts: int, device: torch.device) -> torch.Tensor:
    return 2 * torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(0)).to(device)


def check(logits: torch.Tensor, top_k: int, options: dict[str, Any]) -> None:
    weights, ids = route(logits, top_k, **options)
    defaults = {"score": "softmax", "score_bias": None, "renormalize": True, "scale": 1.0, "num_groups": 1}
    defaults |= {"topk_groups": 1, "group_score": "max"}
    expected_weights, expected_ids = reference.route(logits, top_k, **(defaults | options))
    assert torch.equal(ids, expected_ids)
    assert_close(weights, expected_weights)


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_equal_reference(triton_device: torch.device, name: str) -> None:
    options = dict(ROUTERS[name])
    bias = options.pop("bias", None)
    options["score_bias"] = None if bias is None else torch.tensor(bias, device=triton_device)
    for num_tokens, top_k in ((0, 1), (1, 1), (63, 4)):
        check(logits_of(num_tokens, 12, triton_device), top_k, options)


@pytest.mark.parametrize(
    ("num_experts", "top_k", "options"),
    [
        (160, 6, {"num_groups": 8, "topk_groups": 3, "scale": 16.0, "renormalize": False}),
        (256, 8, {"score": "sigmoid", "num_groups": 8, "topk_groups": 4, "group_score": "top2"}),
        (60, 40, {}),
        (1, 1, {}),
    ],
    ids=["E160-of-8-groups", "E256-of-8-groups", "E60-k40", "E1"],
)
def test_any_number_of_experts_is_routed(
    triton_device: torch.device, num_experts: int, top_k: int, options: dict[str, Any]
) -> None:
    check(logits_of(5, num_experts, triton_device), top_k, options)


@pytest.mark.parametrize("jitter", [0.01, 0.5])
@pytest.mark.parametrize("num_experts", [5, 16])
def test_the_sparse_mixer_equals_reference(triton_device: torch.device, num_experts: int, jitter: float) -> None:
    for num_tokens in (0, 63):
        logits = logits_of(num_tokens, num_experts, triton_device)
        for shifted in (logits, logits - 8):
            weights, ids = route(shifted, 2, score="sparse_mixer", jitter=jitter)
            expected_weights, expected_ids = reference.sparse_mixer(shifted, 2, jitter)
            assert torch.equal(ids, expected_ids)
            assert_close(weights, expected_weights)


def test_a_slice_of_wider_logits_is_read_where_it_lies(triton_device: torch.device) -> None:
    check(logits_of(7, 20, triton_device)[:, 3:15], 3, {})
    check(logits_of(12, 7, triton_device).t(), 3, {})


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "softmax_topk", "sparse_mixer"])
def test_tied_experts_are_chosen_from_the_lowest(triton_device: torch.device, score: str) -> None:
    logits = torch.tensor([[1.0] * 6, [0.0, 2.0, 2.0, 0.0, 2.0, 2.0]], device=triton_device)
    assert route(logits, 2, score=score, jitter=0.01)[1].tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "softmax_topk", "sparse_mixer"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_ids_are_distinct_and_in_range_whatever_the_logits(triton_device: torch.device, score: str, bad: float) -> None:
    logits = logits_of(3, 12, triton_device)
    logits[0], logits[1, ::2] = bad, bad
    expected = route(logits[2:], 3, score=score, num_groups=3, topk_groups=2, group_score="top2", jitter=0.1)
    weights, ids = route(logits, 3, score=score, num_groups=3, topk_groups=2, group_score="top2", jitter=0.1)
    assert ((ids >= 0) & (ids < 12)).all()
    assert all(len(set(row)) == 3 for row in ids.tolist())
    assert torch.equal(weights[2:], expected[0]) and torch.equal(ids[2:], expected[1])
