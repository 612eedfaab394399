"""LayerNorm, alone or after a residual add; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.layer_norm import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["add_layer_norm", "layer_norm"]


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x (..., D), weight (D), bias (D) -> (..., D)."""
    _check_parameters(x, weight, bias)
    if use_triton(x):
        from kernels.layer_norm import kernel

        return (kernel if x.shape[-1] <= kernel.MAX_SIZE else reference).layer_norm(x, weight, bias, eps)
    if x.is_cpu:
        return cpu.layer_norm(x, weight, bias, eps)
    return reference.layer_norm(x, weight, bias, eps)


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, residual (..., D) -> (layer_norm(x + residual), residual). Residual is overwritten with the sum."""
    _check_parameters(x, weight, bias)
    if x.shape != residual.shape or x.dtype != residual.dtype:
        raise ValueError(
            f"add_layer_norm takes x and a residual of its shape and dtype, got {tuple(x.shape)} {x.dtype}, "
            f"{tuple(residual.shape)} {residual.dtype}"
        )
    if use_triton(x):
        from kernels.layer_norm import kernel

        return (kernel if x.shape[-1] <= kernel.MAX_SIZE else reference).add_layer_norm(x, residual, weight, bias, eps)
    if x.is_cpu:
        return cpu.add_layer_norm(x, residual, weight, bias, eps)
    return reference.add_layer_norm(x, residual, weight, bias, eps)


def _check_parameters(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != x.shape[-1:]:
            raise ValueError(f"layer_norm takes a {name} ({x.shape[-1]},), got {tuple(parameter.shape)}")
