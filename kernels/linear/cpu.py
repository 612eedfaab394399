"""Owns linear on the CPU: the native kernels, and oneDNN for many tokens in float32.

float32, bfloat16 (vdpbf16ps) and float16 (widened as it is read) are accumulated in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels import batch_invariance, native

# oneDNN's product for plain dense weights. F.linear sends float32 to MKL, which leaves half of an AMD core idle;
# the operation is private to torch, so it may be missing.
_ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

DOT, PANEL = 0, 1  # the native forms, see native/linear.h
# Most tokens for which each form is the fastest, as benchmarks/kernels_cpu.py measures it. The dot form is within a tenth
# of the others everywhere, and its rows do not depend on their batch. torch's float16 is five times slower at any size.
_ANY = 1 << 62
_MAX_DOT_TOKENS = {torch.float32: 27, torch.bfloat16: 27, torch.float16: _ANY}
_MAX_PANEL_TOKENS = {torch.float32: 256, torch.bfloat16: 2048, torch.float16: 0}


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, Din), weight (Dout, Din), bias (Dout) -> (T, Dout)."""
    dtype, num_tokens = x.dtype, x.shape[0]
    code = native.codes.get(dtype)
    if code is not None and num_tokens:
        if batch_invariance.is_on() or num_tokens <= _MAX_DOT_TOKENS[dtype]:
            return native_linear(DOT, code, x, weight, bias)
        if num_tokens <= _MAX_PANEL_TOKENS[dtype]:
            return native_linear(PANEL, code, x, weight, bias)
    return torch_linear(x, weight, bias)


def native_linear(
    form: int, code: int, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """One of the native forms, where the operands lie as it needs them; torch where they do not."""
    num_tokens, din = x.shape
    dout = weight.shape[0]
    dense = x.stride(1) == 1 and weight.stride(1) == 1 and weight.dtype == x.dtype
    if not dense or not weight.is_cpu or (bias is not None and not (bias.dtype == x.dtype and bias.is_contiguous())):
        return torch_linear(x, weight, bias)
    y = x.new_empty(num_tokens, dout)
    native.lib.linear(
        form,
        torch.get_num_threads(),
        code,
        x.data_ptr(),
        x.stride(0),
        weight.data_ptr(),
        weight.stride(0),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        dout,
        num_tokens,
        din,
        dout,
    )
    return y


def torch_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The same from torch's libraries, whose form for many rows is not that for few."""
    return batch_invariance.rowwise(lambda rows: _library_linear(rows, weight, bias), x)


def _library_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if x.dtype == torch.float32 and _ONEDNN_LINEAR is not None and x.numel() > 0:
        return _ONEDNN_LINEAR(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)
