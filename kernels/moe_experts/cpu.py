"""Owns the mixture of experts on the CPU: tokens sorted by expert, one product for each expert that has any."""

from __future__ import annotations

import torch

from kernels import batch_invariance
from kernels.activation import act_and_mul
from kernels.linear import linear


def moe_experts(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, act: str, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """x (T, D), gate_up (E, 2F, D), down (E, D, F), weights, ids (T, k) -> (T, D), summed up in float32."""
    if not len(x):
        return torch.empty_like(x)
    top_k, experts = ids.shape[1], ids.flatten()
    order = experts.argsort(stable=True)  # (Tk): pairs of token and expert, by expert
    counts = torch.bincount(experts, minlength=len(gate_up)).tolist()
    used = [expert for expert, count in enumerate(counts) if count]
    inputs = x[order // top_k].split([counts[expert] for expert in used])  # (n, D) of each expert
    outputs = torch.cat(
        [
            linear(act_and_mul(act, linear(rows, gate_up[expert])), down[expert])
            for expert, rows in zip(used, inputs, strict=True)
        ]
    )  # (Tk, D)
    by_token = outputs[order.argsort()].view(len(x), top_k, -1)  # (T, k, D)
    if batch_invariance.is_on():
        y = by_token[:, 0].float() * weights[:, :1]
        for expert in range(1, top_k):
            y += by_token[:, expert].float() * weights[:, expert, None]
        return y.to(x.dtype)
    return torch.bmm(weights[:, None], by_token.float())[:, 0].to(x.dtype)
