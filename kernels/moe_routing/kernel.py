"""Owns the routers of mixture-of-experts layers on a GPU: one program chooses the experts of one token.

It takes the best expert that is left, top_k times, of two equal ones the lower; all of it in float32. Expert ids are in
range whatever the logits are, NaN included: what finds weights by them must not leave its memory. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels.triton_runtime import Specialization, next_power_of_2, tl, triton

_LEAST = tl.constexpr(-1e30)  # what a NaN counts as; still above that which is not there, -inf


@triton.jit
def _in_best_groups(
    choice, num_groups, TOPK_GROUPS: tl.constexpr, TOP2: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr
):
    """choice (GROUPS, SIZE) with experts outside of the best groups at -inf."""
    group, place = tl.arange(0, GROUPS), tl.arange(0, SIZE)
    best = tl.max(choice, 1)
    if TOP2:
        first = tl.argmax(choice, 1)
        best += tl.max(tl.where(place[None, :] == first[:, None], float("-inf"), choice), 1)
    best = tl.where(group < num_groups, best, float("-inf"))
    kept = tl.zeros((GROUPS,), tl.int32)
    for _ in tl.static_range(TOPK_GROUPS):
        chosen = group == tl.argmax(best, 0)
        kept = tl.where(chosen, 1, kept)
        best = tl.where(chosen, float("-inf"), best)
    return tl.where((kept != 0)[:, None], choice, float("-inf"))


@triton.jit
def _route(
    logits,
    score_bias,
    weights,
    ids,
    stride,
    num_groups,
    group_size,
    scale,
    SCORE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    TOPK_GROUPS: tl.constexpr,
    TOP2: tl.constexpr,
    TOP_K: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    K: tl.constexpr,
):
    """logits (T, E) float32, rows `stride` apart, E = num_groups * group_size; weights float32 and ids int64 (T, TOP_K).

    TOPK_GROUPS is 0 where all groups count. GROUPS, SIZE and K are powers of two. Grid: T.
    """
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUPS * SIZE)
    expert = lane // SIZE * group_size + lane % SIZE
    exists = (lane // SIZE < num_groups) & (lane % SIZE < group_size)
    logit = tl.load(logits + token * stride + expert, exists, float("-inf"))
    if SCORE == "softmax":
        power = tl.exp(logit - tl.max(logit, 0))
        score = power / tl.sum(power, 0)
    elif SCORE == "sigmoid":
        score = 1 / (1 + tl.exp(-logit))
    else:
        tl.static_assert(SCORE == "softmax_topk", "no such score")
        score = logit
    choice = score
    if HAS_BIAS:
        choice += tl.load(score_bias + expert, exists, 0.0)
    choice = tl.where(exists, tl.where(choice > _LEAST, choice, _LEAST), float("-inf"))
    if TOPK_GROUPS > 0:
        grouped = tl.reshape(choice, (GROUPS, SIZE))
        grouped = _in_best_groups(grouped, num_groups, TOPK_GROUPS, TOP2, GROUPS, SIZE)
        choice = tl.reshape(grouped, (GROUPS * SIZE,))

    column = tl.arange(0, K)
    top_scores = tl.full((K,), float("-inf") if SCORE == "softmax_topk" else 0.0, tl.float32)
    top_ids = tl.zeros((K,), tl.int32)
    for k in tl.static_range(TOP_K):
        chosen = lane == tl.argmax(choice, 0)
        top_scores = tl.where(column == k, tl.sum(tl.where(chosen, score, 0.0), 0), top_scores)
        top_ids = tl.where(column == k, tl.sum(tl.where(chosen, expert, 0), 0), top_ids)
        choice = tl.where(chosen, float("-inf"), choice)
    if SCORE == "softmax_topk":
        power = tl.exp(top_scores - tl.max(top_scores, 0))
        top_scores = power / tl.sum(power, 0)
    elif RENORMALIZE:
        top_scores = top_scores / (tl.sum(top_scores, 0) + 1e-20)
    place = token * TOP_K + column
    tl.store(weights + place, top_scores * scale, column < TOP_K)
    tl.store(ids + place, top_ids.to(tl.int64), column < TOP_K)


@triton.jit
def _sparse_mixer(logits, weights, ids, stride, num_experts, jitter, TOP_K: tl.constexpr, SIZE: tl.constexpr):
    """logits (T, E) float32, rows `stride` apart; weights float32 and ids int64 (T, TOP_K). Grid: T."""
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, SIZE)
    exists = expert < num_experts
    logit = tl.load(logits + token * stride + expert, exists, float("-inf"))
    left = tl.where(exists, tl.where(logit > _LEAST, logit, _LEAST), float("-inf"))
    for k in tl.static_range(TOP_K):
        best, chosen = tl.max(left, 0), tl.argmax(left, 0)
        distance = (best - logit) / tl.maximum(tl.abs(logit), best)
        near = tl.where(distance > 2 * jitter, 0.0, tl.exp(left - best))
        tl.store(weights + token * TOP_K + k, 1 / tl.sum(near, 0))
        tl.store(ids + token * TOP_K + k, chosen.to(tl.int64))
        left = tl.where(expert == chosen, float("-inf"), left)


def route(
    logits: torch.Tensor,
    top_k: int,
    *,
    score: str,
    score_bias: torch.Tensor | None,
    renormalize: bool,
    scale: float,
    num_groups: int,
    topk_groups: int,
    group_score: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (T, E) -> weights, ids (T, k)."""
    num_experts = logits.shape[1]
    if num_groups == topk_groups or score == "softmax_topk":
        num_groups, topk_groups = 1, 0  # which takes no part in the choice
    group_size = num_experts // num_groups
    logits, weights, ids = _operands(logits, top_k)
    groups, size = next_power_of_2(num_groups), next_power_of_2(group_size)
    if len(logits):
        _route[(len(logits),)](
            logits,
            None if score_bias is None else score_bias.contiguous(),
            weights,
            ids,
            logits.stride(0),
            num_groups,
            group_size,
            scale,
            SCORE=score,
            HAS_BIAS=score_bias is not None and score != "softmax_topk",
            RENORMALIZE=renormalize,
            TOPK_GROUPS=topk_groups,
            TOP2=group_score == "top2",
            TOP_K=top_k,
            GROUPS=groups,
            SIZE=size,
            K=next_power_of_2(top_k),
            num_warps=_num_warps(groups * size),
        )
    return weights, ids


def sparse_mixer(logits: torch.Tensor, top_k: int, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (T, E) -> weights, ids (T, k)."""
    logits, weights, ids = _operands(logits, top_k)
    size = next_power_of_2(logits.shape[1])
    if len(logits):
        _sparse_mixer[(len(logits),)](
            logits, weights, ids, logits.stride(0), logits.shape[1], jitter,
            TOP_K=top_k, SIZE=size, num_warps=_num_warps(size),
        )  # fmt: skip
    return weights, ids


def _operands(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits whose rows are dense, and where weights and ids go."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    shape = len(logits), top_k
    return logits, logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)


def _num_warps(num_lanes: int) -> int:
    """One warp holds up to eight experts in each thread, so that a reduction needs no barrier."""
    return 1 if num_lanes <= 256 else 4


def _specialization(
    name: str,
    num_experts: int,
    top_k: int,
    score: str,
    *,
    num_groups: int = 1,
    topk_groups: int = 0,
    top2: bool = False,
) -> Specialization:
    groups, size = next_power_of_2(num_groups), next_power_of_2(num_experts // num_groups)
    return Specialization(
        name=name,
        kernel=_route,
        types={"logits": "*fp32", "score_bias": "*fp32", "weights": "*fp32", "ids": "*i64", "stride": "i32"}
        | {"num_groups": "i32", "group_size": "i32", "scale": "fp32"},
        constants={
            "SCORE": score, "HAS_BIAS": score == "sigmoid", "RENORMALIZE": True, "TOPK_GROUPS": topk_groups, "TOP2": top2,
            "TOP_K": top_k, "GROUPS": groups, "SIZE": size, "K": next_power_of_2(top_k),
        },
        aligned=("stride",),
        num_warps=_num_warps(groups * size),
    )  # fmt: skip


COMPILED = [
    _specialization("softmax-E8-k2", 8, 2, "softmax"),
    _specialization("softmax-E128-k8", 128, 8, "softmax"),
    _specialization("softmax-E512-k10", 512, 10, "softmax"),
    _specialization("softmax_topk-E32-k4", 32, 4, "softmax_topk"),
    _specialization("softmax-E160-k6-groups", 160, 6, "softmax", num_groups=8, topk_groups=3),
    _specialization("sigmoid-E256-k8-groups", 256, 8, "sigmoid", num_groups=8, topk_groups=4, top2=True),
    _specialization("sigmoid-E384-k8", 384, 8, "sigmoid"),
    Specialization(
        name="sparse_mixer-E16-k2",
        kernel=_sparse_mixer,
        types={
            "logits": "*fp32",
            "weights": "*fp32",
            "ids": "*i64",
            "stride": "i32",
            "num_experts": "i32",
            "jitter": "fp32",
        },
        constants={"TOP_K": 2, "SIZE": 16},
        num_warps=1,
    ),
]
