"""Owns the activations on the CPU: the native kernel, fused with the gate's product; the reference where there is none."""

from __future__ import annotations

import torch

from kernels import native
from kernels.activation import reference

# As the C code numbers them, see native/elementwise.h.
_NAMES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}


def act(name: str, x: torch.Tensor) -> torch.Tensor:
    """x (...) -> (...)."""
    code = native.codes.get(x.dtype)
    if code is None:
        return reference.act(name, x)
    x = x.contiguous()
    y = torch.empty_like(x)
    size = x.numel()
    native.lib.activate(_NAMES[name], 0, torch.get_num_threads(), code, x.data_ptr(), size, y.data_ptr(), 1, size)
    return y


def act_and_mul(name: str, x: torch.Tensor) -> torch.Tensor:
    """x (T, 2F) -> (T, F)."""
    code = native.codes.get(x.dtype)
    if code is None or x.stride(1) != 1:
        return reference.act_and_mul(name, x)
    rows, size = x.shape[0], x.shape[1] // 2
    y = x.new_empty(rows, size)
    native.lib.activate(
        _NAMES[name], 1, torch.get_num_threads(), code, x.data_ptr(), x.stride(0), y.data_ptr(), rows, size
    )
    return y
