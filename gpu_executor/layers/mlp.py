"""Owns the feed-forward layer, with or without a gate."""

from __future__ import annotations

import torch

from gpu_executor.layers.linear import Linear
from kernels.activation import act, act_and_mul


class GatedMlp:
    """down(act(gate(x)) * up(x)); gate and up come from one fused projection."""

    def __init__(self, activation: str, gate_up: Linear, down: Linear, bound: float | None = None) -> None:
        """gate_up (2F, D), down (D, F); the bound is the activation's."""
        self._activation, self._bound, self.gate_up, self.down = activation, bound, gate_up, down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, D) -> (T, D)."""
        return self.down(act_and_mul(self._activation, self.gate_up(x), self._bound))


class PlainMlp:
    """down(act(up(x)))."""

    def __init__(self, activation: str, up: Linear, down: Linear, bound: float | None = None) -> None:
        """up (F, D), down (D, F); the bound is the activation's."""
        self._activation, self._bound, self.up, self.down = activation, bound, up, down

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, D) -> (T, D)."""
        return self.down(act(self._activation, self.up(x), self._bound))
