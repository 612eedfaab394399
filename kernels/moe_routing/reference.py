"""Defines the routers of mixture-of-experts layers in plain torch."""

from __future__ import annotations

import torch


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
    """logits (T, E) -> weights, ids (T, k). The bias and the groups decide who is chosen, never with which weight."""
    if score == "softmax_topk":
        top, ids = logits.topk(top_k, -1)
        return top.softmax(-1) * scale, ids
    scores = logits.sigmoid() if score == "sigmoid" else logits.softmax(-1)
    choice = scores if score_bias is None else scores + score_bias
    if num_groups > 1:
        choice = _in_best_groups(choice, num_groups, topk_groups, group_score)
    ids = choice.topk(top_k, -1).indices
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale, ids


def _in_best_groups(choice: torch.Tensor, num_groups: int, topk_groups: int, group_score: str) -> torch.Tensor:
    """choice (T, E) with experts outside of the best groups at -inf (DeepSeek-V2: max, DeepSeek-V3: sum of the best two)."""
    grouped = choice.unflatten(1, (num_groups, -1))  # (T, groups, E / groups)
    best = grouped.topk(2, -1).values.sum(-1) if group_score == "top2" else grouped.amax(-1)
    kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(topk_groups, -1).indices, True)
    return grouped.masked_fill(~kept[..., None], -torch.inf).flatten(1)


def sparse_mixer(logits: torch.Tensor, top_k: int, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (T, E) -> weights, ids (T, k): SparseMixer-v2 (Liu et al., 2024) as it is at inference.

    One expert after the other: the likeliest that is left, with its probability among those that are left and within
    2 * jitter of it, relative to the larger of the best score and their own magnitude. Weights need not sum up to 1.
    """
    left, weights, ids = logits, [], []
    for _ in range(top_k):
        best, chosen = left.max(-1, keepdim=True)
        distance = (best - logits) / torch.maximum(logits.abs(), best)
        gates = left.masked_fill(distance > 2 * jitter, -torch.inf).softmax(-1)
        weights.append(gates.gather(1, chosen))
        ids.append(chosen)
        left = left.scatter(1, chosen, -torch.inf)
    return torch.cat(weights, 1), torch.cat(ids, 1)
