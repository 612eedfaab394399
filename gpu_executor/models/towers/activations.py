"""Owns the activations of towers, by the names that families give them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU as CLIP (Radford et al., 2021) approximates it: x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU (Hendrycks and Gimpel, 2016) with the tanh approximation."""
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}
