"""Owns the selective scan on the CPU: the native kernel, and batched torch where there is none."""

from __future__ import annotations

import torch

from kernels import native
from kernels.selective_scan import batched

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
        return batched.selective_scan(x, dt, a, b, c, d, z, dt_bias, state, query_start, seq_lens, slots)
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
