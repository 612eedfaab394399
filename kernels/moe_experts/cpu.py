"""Owns the mixture of experts on the CPU: tokens sorted by expert, one product for each expert that has any."""

from __future__ import annotations

import torch

from kernels.activation import act_and_mul
from kernels.linear import linear


def moe_experts(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, act: str, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """x (T, D), gate_up (E, 2F, D), down (E, D, F), weights, ids (T, k) -> (T, D), summed up in float32."""
    top_k = ids.shape[1]
    order = ids.flatten().argsort(stable=True)  # (Tk): pairs of token and expert, by expert
    rows = x[order // top_k]  # (Tk, D)
    outputs = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(torch.bincount(ids.flatten(), minlength=len(gate_up)).tolist()):
        if count:
            part = slice(start, start + count)
            outputs[part] = linear(act_and_mul(act, linear(rows[part], gate_up[expert])), down[expert])
            start += count
    by_token = torch.empty_like(outputs)
    by_token[order] = outputs
    return torch.einsum("tkd,tk->td", by_token.view(*ids.shape, -1).float(), weights).to(x.dtype)
