"""Runs tokens through their experts' gated MLPs; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.activation.reference import ACTIVATIONS
from kernels.moe_experts import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["moe_experts"]


def moe_experts(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, act: str, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """x (T, D), gate_up (E, 2F, D), down (E, D, F), weights and ids (T, k) -> (T, D).

    The sum over a token's experts of weight * down(act(gate(x)) * up(x)); an expert without tokens costs nothing.
    """
    num_experts, double_size, hidden_size = gate_up.shape
    if (
        down.shape != (num_experts, hidden_size, double_size // 2)
        or x.shape[1] != hidden_size
        or not len(x) == len(ids) == len(weights)
        or ids.shape != weights.shape
    ):
        raise ValueError(
            "moe_experts takes x (T, D), gate_up (E, 2F, D), down (E, D, F), weights and ids (T, k), got "
            f"{[tuple(t.shape) for t in (x, gate_up, down, weights, ids)]}"
        )
    if act not in ACTIVATIONS:
        raise ValueError(f"activation {act!r} of experts is none of {', '.join(ACTIVATIONS)}")
    path = cpu if x.is_cpu else reference
    if use_triton(x):
        from kernels.moe_experts import kernel as path
    return path.moe_experts(x, gate_up, down, act, weights, ids)
