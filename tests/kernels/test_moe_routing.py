"""Each router chooses the experts, and gives them the weights, that its formula says when it is written out for one token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from kernels.moe_routing import route
from tests.kernels.closeness import assert_close

E = 12


def logits_of(num_tokens: int, num_experts: int = E, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed))


def softmax(values: Sequence[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def written_out(
    logits: list[float],
    top_k: int,
    *,
    score: str = "softmax",
    bias: Sequence[float] = (0.0,) * E,
    renormalize: bool = True,
    scale: float = 1.0,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: str = "max",
) -> dict[int, float]:
    """Expert -> weight of one token."""
    if score == "softmax_topk":
        chosen = sorted(range(len(logits)), key=lambda e: -logits[e])[:top_k]
        return dict(zip(chosen, (scale * w for w in softmax([logits[e] for e in chosen])), strict=True))
    scores = softmax(logits) if score == "softmax" else [1 / (1 + math.exp(-logit)) for logit in logits]
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    size = len(logits) // num_groups
    members = [range(g * size, (g + 1) * size) for g in range(num_groups)]
    num_best = 2 if group_score == "top2" else 1
    rank = [sum(sorted((choice[e] for e in group), reverse=True)[:num_best]) for group in members]
    best_groups = sorted(range(num_groups), key=lambda g: -rank[g])[:topk_groups]
    chosen = sorted((e for g in best_groups for e in members[g]), key=lambda e: -choice[e])[:top_k]
    total = sum(scores[e] for e in chosen) if renormalize else 1.0
    return {e: scale * scores[e] / total for e in chosen}


BIAS = tuple(0.4 * math.sin(3 * e) for e in range(E))
ROUTERS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "as-scored": {"renormalize": False},
    "scaled": {"scale": 2.5, "renormalize": False},
    "granite": {"score": "softmax_topk"},
    "granite-scaled": {"score": "softmax_topk", "scale": 0.5},
    "sigmoid": {"score": "sigmoid"},
    "deepseek-v2": {"renormalize": False, "scale": 16.0, "num_groups": 4, "topk_groups": 2},
    "deepseek-v3": {"score": "sigmoid", "bias": BIAS, "scale": 2.5, "num_groups": 4, "topk_groups": 2, "group_score": "top2"},
    "moonlight": {"score": "sigmoid", "bias": BIAS, "scale": 2.446, "num_groups": 1, "topk_groups": 1, "group_score": "top2"},
    "one-group-of-three": {"num_groups": 3, "topk_groups": 1, "renormalize": False},
    "all-groups": {"num_groups": 6, "topk_groups": 6, "group_score": "top2"},
}  # fmt: skip


def call(logits: torch.Tensor, top_k: int, options: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    bias = options.get("bias")
    rest = {key: value for key, value in options.items() if key != "bias"}
    return route(logits, top_k, score_bias=None if bias is None else torch.tensor(bias), **rest)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("name", ROUTERS)
def test_weights_equal_the_formula_written_out(name: str, top_k: int) -> None:
    logits = logits_of(63)
    weights, ids = call(logits, top_k, ROUTERS[name])
    assert weights.shape == ids.shape == (63, top_k)
    assert weights.dtype == torch.float32 and ids.dtype == torch.int64
    for t, row in enumerate(logits.double().tolist()):
        wanted = written_out(row, top_k, **ROUTERS[name])
        got = dict(zip(ids[t].tolist(), weights[t].tolist(), strict=True))
        assert got == pytest.approx(wanted, rel=1e-5), f"token {t}"


def test_the_bias_changes_who_is_chosen_and_no_weight() -> None:
    logits, bias = torch.zeros(1, 4), torch.tensor([0.0, 1.0, 0.0, 2.0])
    weights, ids = route(logits, 2, score="sigmoid", score_bias=bias, renormalize=False)
    assert sorted(ids[0].tolist()) == [1, 3]
    assert weights.tolist() == [[0.5, 0.5]]


def test_renormalized_weights_sum_up_to_the_scale() -> None:
    weights, _ = route(logits_of(20), 5, score="sigmoid", scale=2.5)
    torch.testing.assert_close(weights.sum(1), torch.full((20,), 2.5))


def test_scores_that_vanish_are_not_divided_by_zero() -> None:
    weights, _ = route(torch.full((2, 4), -200.0), 2, score="sigmoid")
    assert torch.equal(weights, torch.zeros(2, 2))


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "softmax_topk", "sparse_mixer"])
def test_tied_experts_are_each_chosen_once_and_alike_in_every_batch(score: str) -> None:
    logits = torch.tensor([[1.0] * 6, [0.0, 2.0, 2.0, 0.0, 2.0, 2.0], [3.0, 0.0, 0.0, 3.0, 0.0, 0.0]])
    weights, ids = route(logits, 2, score=score, jitter=0.01)
    for row, token in enumerate(logits):
        assert len(set(ids[row].tolist())) == 2
        assert (token[ids[row]] == token.max()).all()
        alone_weights, alone_ids = route(logits[row : row + 1], 2, score=score, jitter=0.01)
        assert torch.equal(alone_ids[0], ids[row]) and torch.equal(alone_weights[0], weights[row])


@pytest.mark.parametrize("jitter", [0.01, 0.1, 0.5])
def test_the_sparse_mixer_is_that_of_transformers(jitter: float) -> None:
    logits = torch.cat((logits_of(63), logits_of(63, seed=1) - 8, logits_of(63, seed=2) * 0.01))
    weights, ids = route(logits, 2, score="sparse_mixer", jitter=jitter)
    expected_weights, expected_ids = sparsemixer(logits, jitter, training=False)
    assert torch.equal(ids, expected_ids)
    assert_close(weights, expected_weights)


def test_an_empty_batch_has_no_choices() -> None:
    for score in ("softmax", "sigmoid", "softmax_topk", "sparse_mixer"):
        weights, ids = route(torch.zeros(0, 8), 2, score=score, num_groups=4, topk_groups=2, jitter=0.1)
        assert weights.shape == ids.shape == (0, 2)


@pytest.mark.parametrize(
    ("top_k", "options"),
    [
        (0, {}), (13, {}), (2, {"num_groups": 5}), (2, {"num_groups": 3, "topk_groups": 4}),
        (4, {"num_groups": 6, "topk_groups": 1}), (2, {"num_groups": 12, "topk_groups": 4, "group_score": "top2"}),
    ],
    ids=["none", "more-than-there-are", "uneven-groups", "more-groups-than-there-are", "more-than-in-the-groups",
         "two-of-one"],
)  # fmt: skip
def test_impossible_choices_are_refused(top_k: int, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"cannot choose {top_k} of 12 experts"):
        route(logits_of(3), top_k, **options)
