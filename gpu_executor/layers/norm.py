"""Owns the norm layers: alone, or fused with the residual add before them."""

from __future__ import annotations

import torch

from gpu_executor.models.spec import Norm
from kernels.layer_norm import add_layer_norm, layer_norm
from kernels.rms_norm import add_rms_norm, rms_norm


class RmsNorm:
    """x / rms(x) * weight."""

    __slots__ = ("_eps", "weight")

    def __init__(self, weight: torch.Tensor | None, eps: float) -> None:
        """weight (D)."""
        self.weight, self._eps = weight, eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, D) -> (T, D)."""
        return rms_norm(x, self.weight, self._eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x, residual (T, D) -> norm(x + residual), x + residual. The residual is overwritten with the sum."""
        return add_rms_norm(x, residual, self.weight, self._eps)


class LayerNorm:
    """(x - mean(x)) / std(x) * weight + bias."""

    __slots__ = ("_eps", "bias", "weight")

    def __init__(self, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> None:
        """weight (D), bias (D)."""
        self.weight, self.bias, self._eps = weight, bias, eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, D) -> (T, D)."""
        return layer_norm(x, self.weight, self.bias, self._eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x, residual (T, D) -> norm(x + residual), x + residual. The residual is overwritten with the sum."""
        return add_layer_norm(x, residual, self.weight, self.bias, self._eps)


class LayerNormOfHeads:
    """LayerNorm of each head, with a weight and a bias of its own."""

    __slots__ = ("_eps", "bias", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> None:
        """weight, bias (H, K)."""
        self.weight, self.bias, self._eps = weight, bias, eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, H, K) -> (T, H, K)."""
        x = layer_norm(x, None, None, self._eps).mul_(self.weight)
        return x if self.bias is None else x.add_(self.bias)


NormLayer = RmsNorm | LayerNorm | LayerNormOfHeads


def make_norm(spec: Norm, weight: torch.Tensor | None, bias: torch.Tensor | None) -> NormLayer:
    """The layer of a spec; weight (D), or (H, K) for a LayerNorm whose heads have weights of their own; bias the same, or None."""
    if spec.kind == "rms":
        return RmsNorm(weight, spec.eps)
    if weight is not None and weight.dim() == 2:
        return LayerNormOfHeads(weight, bias, spec.eps)
    return LayerNorm(weight, bias, spec.eps)
