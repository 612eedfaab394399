"""Owns the activations on the CPU: the native kernel, fused with the gate's product; the reference where there is none."""

from __future__ import annotations

import torch

from kernels import native
from kernels.activation import reference
from kernels.batch_invariance import elementwise

# As the C code numbers them, see native/elementwise.h.
_NAMES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}


def act(name: str, x: torch.Tensor, bound: float | None) -> torch.Tensor:
    """x (...) -> (...)."""
    code = native.codes.get(x.dtype)
    if code is None or bound is not None:
        return elementwise(lambda rows: reference.act(name, rows, bound), x)
    x = x.contiguous()
    y = torch.empty_like(x)
    size = x.numel()
    native.lib.activate(_NAMES[name], 0, torch.get_num_threads(), code, x.data_ptr(), size, y.data_ptr(), 1, size)
    return y


def act_and_mul(name: str, x: torch.Tensor, bound: float | None) -> torch.Tensor:
    """x (T, 2F) -> (T, F)."""
    code = native.codes.get(x.dtype)
    if code is None or bound is not None or x.stride(1) != 1:
        return elementwise(lambda rows: reference.act_and_mul(name, rows, bound), x)
    rows, size = x.shape[0], x.shape[1] // 2
    y = x.new_empty(rows, size)
    native.lib.activate(
        _NAMES[name], 1, torch.get_num_threads(), code, x.data_ptr(), x.stride(0), y.data_ptr(), rows, size
    )
    return y
