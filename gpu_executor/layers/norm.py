"""Owns the norm layer: RMSNorm or LayerNorm, alone or fused with the residual add before it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gpu_executor.models.spec import Norm
from kernels.layer_norm import add_layer_norm, layer_norm
from kernels.rms_norm import add_rms_norm, rms_norm

NormCall = Callable[[torch.Tensor], torch.Tensor]
AddNormCall = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def make_norm(spec: Norm, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[NormCall, AddNormCall]:
    """weight (D), bias (D) or None -> x (T, D) -> (T, D), and x, residual -> (norm(x + residual), x + residual).

    The second overwrites the residual with the sum.
    """
    eps = spec.eps
    if spec.kind == "rms":
        return lambda x: rms_norm(x, weight, eps), lambda x, residual: add_rms_norm(x, residual, weight, eps)
    return (
        lambda x: layer_norm(x, weight, bias, eps),
        lambda x, residual: add_layer_norm(x, residual, weight, bias, eps),
    )
