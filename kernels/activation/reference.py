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


def fatrelu(x: torch.Tensor, bound: float) -> torch.Tensor:
    """x (...) -> (...): 0 where x is not above the bound (ProSparse: Song et al., 2024)."""
    return F.threshold(x, bound, 0.0)


def gegelu(gate: torch.Tensor, up: torch.Tensor, bound: float) -> torch.Tensor:
    """gate, up (T, F) -> g sigmoid(1.702 g) (u + 1), where g is at most the bound and u within it (Phi-3-small, 2024)."""
    gate, up = gate.clamp(max=bound), up.clamp(-bound, bound)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


# Those with a bound: of one tensor, and of gate and up together.
BOUNDED = {"fatrelu": fatrelu}
BOUNDED_GATES = {"gegelu": gegelu}


def act(name: str, x: torch.Tensor, bound: float | None = None) -> torch.Tensor:
    """x (...) -> (...), elementwise."""
    return ACTIVATIONS[name](x) if bound is None else BOUNDED[name](x, bound)


def act_and_mul(name: str, x: torch.Tensor, bound: float | None = None) -> torch.Tensor:
    """x (T, 2F), the gate in the first half -> act(gate) * up (T, F)."""
    gate, up = x.chunk(2, dim=-1)  # (T, F) each
    return BOUNDED_GATES[name](gate, up, bound) if name in BOUNDED_GATES else act(name, gate, bound) * up
