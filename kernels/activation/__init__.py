"""Activations, alone or as the gate of an MLP; see reference.py for the definition."""

from __future__ import annotations

from collections.abc import Collection

import torch

from kernels.activation import cpu, reference
from kernels.triton_path import use_triton

__all__ = ["act", "act_and_mul", "gelu_and_mul", "gelu_tanh_and_mul", "silu_and_mul"]


def act(name: str, x: torch.Tensor, bound: float | None = None) -> torch.Tensor:
    """x (...) -> (...); name is silu, gelu, gelu_tanh, relu or relu2, or with a bound fatrelu."""
    _check_name(name, bound, reference.BOUNDED)
    if use_triton(x):
        from kernels.activation import kernel

        return kernel.act(name, x, bound)
    return (cpu if x.is_cpu else reference).act(name, x, bound)


def act_and_mul(name: str, x: torch.Tensor, bound: float | None = None) -> torch.Tensor:
    """x (T, 2F), the gate in the first half -> act(gate) * up (T, F); with a bound, name may be gegelu too."""
    _check_name(name, bound, reference.BOUNDED | reference.BOUNDED_GATES)
    if x.dim() != 2 or x.shape[1] % 2:
        raise ValueError(f"act_and_mul takes (T, 2F), got {tuple(x.shape)}")
    if use_triton(x):
        from kernels.activation import kernel

        return kernel.act_and_mul(name, x, bound)
    return (cpu if x.is_cpu else reference).act_and_mul(name, x, bound)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """x (T, 2F) -> (T, F)."""
    return act_and_mul("silu", x)


def gelu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """x (T, 2F) -> (T, F)."""
    return act_and_mul("gelu", x)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    """x (T, 2F) -> (T, F)."""
    return act_and_mul("gelu_tanh", x)


def _check_name(name: str, bound: float | None, bounded: Collection[str]) -> None:
    names = reference.ACTIVATIONS if bound is None else bounded
    if name not in names:
        kind = "activation" if bound is None else "activation with a bound"
        raise ValueError(f"{kind} {name!r} is none of {', '.join(names)}")
