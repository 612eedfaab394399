"""Chooses each token's experts; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.moe_routing import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["route"]


def route(
    logits: torch.Tensor,
    top_k: int,
    *,
    score: str = "softmax",
    score_bias: torch.Tensor | None = None,
    renormalize: bool = True,
    scale: float = 1.0,
    num_groups: int = 1,
    topk_groups: int = 1,
    group_score: str = "max",
    jitter: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits (T, E) float32 -> weights (T, top_k) float32 and expert ids (T, top_k) int64; score_bias (E).

    score is softmax, sigmoid, softmax_topk (over the chosen ones only) or sparse_mixer (two experts, with `jitter`).
    """
    num_experts = logits.shape[1]
    group_size = num_experts // num_groups
    if (
        num_experts % num_groups
        or not 0 < topk_groups <= num_groups
        or not 0 < top_k <= topk_groups * group_size
        or (group_score == "top2" and num_groups > 1 and group_size < 2)
    ):
        raise ValueError(f"cannot choose {top_k} of {num_experts} experts in {topk_groups} of {num_groups} groups")
    path = cpu if logits.is_cpu else reference
    if use_triton(logits):
        from kernels.moe_routing import kernel as path
    if score == "sparse_mixer":
        return path.sparse_mixer(logits, top_k, jitter)
    return path.route(
        logits, top_k, score=score, score_bias=score_bias, renormalize=renormalize, scale=scale, num_groups=num_groups,
        topk_groups=topk_groups, group_score=group_score,
    )  # fmt: skip
