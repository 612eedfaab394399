"""Runs a state-space model's recurrence; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.selective_scan import batched, cpu
from kernels.triton_path import use_triton

__all__ = ["selective_scan"]


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
    """x, dt, z (T, C), b, c (T, N), a (C, N), d, dt_bias (C) float32, state (slots, N, C) float32 -> (T, C).

    Sequence r has n = query_start[r + 1] - query_start[r] rows, 0 allowed; they are its last n of seq_lens[r] tokens. Its
    state before them lies in state[slots[r]], which is overwritten with the state after them; a sequence that begins with
    its rows (n equals seq_lens[r]) starts from zeros, whatever lies in memory. query_start (R + 1) and seq_lens (R) are
    int32, slots (R) int64, each slot named once.
    """
    num_channels, num_states = a.shape
    if not (
        x.shape == dt.shape == z.shape == (len(x), num_channels)
        and b.shape == c.shape == (len(x), num_states)
        and d.shape == dt_bias.shape == (num_channels,)
        and state.shape[1:] == (num_states, num_channels)
    ):
        raise ValueError(
            "selective_scan takes x, dt, z (T, C), a (C, N), b, c (T, N), d, dt_bias (C) and state (slots, N, C), got "
            f"{[tuple(t.shape) for t in (x, dt, z, a, b, c, d, dt_bias, state)]}"
        )
    if not a.dtype == d.dtype == dt_bias.dtype == state.dtype == torch.float32:
        raise ValueError(f"a, d, dt_bias and state are float32, got {[t.dtype for t in (a, d, dt_bias, state)]}")
    if not len(query_start) - 1 == len(seq_lens) == len(slots):
        raise ValueError(
            f"{len(seq_lens)} sequences need one more query_start and as many slots, got {len(query_start)} and {len(slots)}"
        )
    path = cpu if x.is_cpu else batched
    if use_triton(x):
        from kernels.selective_scan import kernel as path
    return path.selective_scan(x, dt, a, b, c, d, z, dt_bias, state, query_start, seq_lens, slots)
