"""Defines the activations in plain torch. A gated one rounds act(gate) to the number format before it multiplies."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def act(name: str, x: torch.Tensor) -> torch.Tensor:
    """x (...) -> (...), elementwise."""
    return ACTIVATIONS[name](x)


def act_and_mul(name: str, x: torch.Tensor) -> torch.Tensor:
    """x (T, 2F), the gate in the first half -> act(gate) * up (T, F)."""
    gate, up = x.chunk(2, dim=-1)  # (T, F) each
    return act(name, gate) * up
