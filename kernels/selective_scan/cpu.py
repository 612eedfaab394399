"""Owns the selective scan on the CPU: the native kernel, and batched torch where there is none."""

from __future__ import annotations

import torch

from kernels import batch_invariance, native
from kernels.selective_scan import batched, reference

_MAX_NATIVE_STATES = 256


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor,
    z: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Shapes as in the public call. Takes the native kernel where formats and layout are what it reads."""
    num_tokens, num_channels = x.shape
    num_states = a.shape[1]
    code = native.codes.get(x.dtype)
    if (
        code is None
        or num_states > _MAX_NATIVE_STATES
        or not x.dtype == dt.dtype == b.dtype == c.dtype == z.dtype
        or not all(t.stride(1) == 1 or t.shape[1] <= 1 for t in (x, dt, b, c, z))
        or not query_start.dtype == seq_lens.dtype == torch.int32
        or slots.dtype != torch.int64
        or not all(t.is_contiguous() for t in (a, d, dt_bias, state))
    ):
        path = _row_by_row if batch_invariance.is_on() else batched.selective_scan
        return path(x, dt, a, b, c, d, z, dt_bias, state, query_start, seq_lens, slots)
    query_start, seq_lens, slots = query_start.contiguous(), seq_lens.contiguous(), slots.contiguous()
    out = x.new_empty(num_tokens, num_channels)
    rows = [value for t in (x, dt, b, c, z) for value in (t.data_ptr(), t.stride(0))]
    native.lib.selective_scan(
        torch.get_num_threads(),
        code,
        *rows,
        a.data_ptr(),
        d.data_ptr(),
        dt_bias.data_ptr(),
        state.data_ptr(),
        query_start.data_ptr(),
        seq_lens.data_ptr(),
        slots.data_ptr(),
        out.data_ptr(),
        num_tokens,
        len(seq_lens),
        num_channels,
        num_states,
        len(state),
    )
    return out


def _row_by_row(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor,
    z: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """The definition, told of one row at a time, so that its libraries see one shape."""
    slots, starts, lengths = batch_invariance.rows_as_sequences(slots, query_start, seq_lens, len(x), causal=True)
    out = x.new_empty(x.shape)
    for row in range(len(x)):
        one = slice(row, row + 1)
        x1, dt1, b1, c1, z1 = (t[one].clone() for t in (x, dt, b, c, z))
        out[one] = reference.selective_scan(
            x1, dt1, a, b1, c1, d, z1, dt_bias, state, starts[:2], lengths[one], slots[one]
        )
    return out
