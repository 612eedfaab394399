"""Defines a mixture of gated MLPs in plain torch: every expert in turn, on the tokens that chose it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.activation import reference


def moe_experts(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, act: str, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """x (T, D), gate_up (E, 2F, D), down (E, D, F), weights, ids (T, k) -> (T, D), summed up in float32."""
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(len(gate_up)):
        tokens, column = (ids == expert).nonzero(as_tuple=True)
        out = F.linear(reference.act_and_mul(act, F.linear(x[tokens], gate_up[expert])), down[expert])
        y.index_add_(0, tokens, out.float() * weights[tokens, column, None].float())
    return y.to(x.dtype)
