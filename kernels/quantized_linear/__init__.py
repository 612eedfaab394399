"""Multiplies by a weight that stays quantized in memory; see reference.py for what each format means.

The layer that holds a PackedWeight calls this as it would call linear. Activations keep their number format.
"""

from __future__ import annotations

import torch

from kernels.quantized_linear import cpu, reference
from kernels.quantized_linear.formats import pack_awq, pack_gptq, pack_integers, pack_scaled
from kernels.quantized_linear.packed import PackedWeight, concatenate, fits_kernel, select_rows
from kernels.quantized_linear.reference import dequantize
from kernels.triton_path import use_triton

__all__ = [
    "PackedWeight", "concatenate", "dequantize", "fits_kernel", "pack_awq", "pack_gptq", "pack_integers", "pack_scaled",
    "quantized_linear", "select_rows",
]  # fmt: skip


def quantized_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (T, Din), weight (Dout, Din), bias (Dout) -> (T, Dout) in x.dtype. For inference: no gradient."""
    if x.dim() != 2 or x.shape[1] != weight.din:
        raise ValueError(f"this weight takes x (T, {weight.din}), got {tuple(x.shape)}")
    if bias is not None and bias.shape != (weight.dout,):
        raise ValueError(f"this weight takes a bias ({weight.dout},), got {tuple(bias.shape)}")
    path = cpu if x.is_cpu else reference
    if use_triton(x):
        from kernels.quantized_linear import kernel as path
    return path.quantized_linear(x, weight, bias)
