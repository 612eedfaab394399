"""Owns the causal convolution on the CPU: the native kernel, and batched torch where there is none."""

from __future__ import annotations

import torch

from kernels import batch_invariance, native
from kernels.causal_conv import batched, reference


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    window: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Shapes as in the public call. Takes the native kernel where formats and layout are what it reads."""
    num_tokens, num_channels = x.shape
    code = native.codes.get(x.dtype)
    if (
        code is None
        or not x.dtype == weight.dtype == window.dtype
        or not (bias is None or (bias.dtype == x.dtype and bias.is_contiguous()))
        or not query_start.dtype == seq_lens.dtype == torch.int32
        or slots.dtype != torch.int64
        or not (weight.is_contiguous() and window.is_contiguous())
        or not (x.stride(1) == 1 or num_channels <= 1)
    ):
        path = _row_by_row if batch_invariance.is_on() else batched.causal_conv
        return path(x, weight, bias, window, query_start, seq_lens, slots)
    query_start, seq_lens, slots = query_start.contiguous(), seq_lens.contiguous(), slots.contiguous()
    out = x.new_empty(num_tokens, num_channels)
    native.lib.causal_conv(
        torch.get_num_threads(),
        code,
        x.data_ptr(),
        x.stride(0),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        window.data_ptr(),
        query_start.data_ptr(),
        seq_lens.data_ptr(),
        slots.data_ptr(),
        out.data_ptr(),
        num_tokens,
        len(seq_lens),
        num_channels,
        weight.shape[1],
        len(window),
    )
    return out


def _row_by_row(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    window: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """The definition, told of one row at a time, so that its libraries see one shape."""
    slots, starts, lengths = batch_invariance.rows_as_sequences(slots, query_start, seq_lens, len(x), causal=True)
    out = x.new_empty(x.shape)
    for row in range(len(x)):
        one = slice(row, row + 1)
        out[one] = reference.causal_conv(x[one].clone(), weight, bias, window, starts[:2], lengths[one], slots[one])
    return out
