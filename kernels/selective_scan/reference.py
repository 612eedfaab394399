"""Defines the selective scan (Gu and Dao, 2023) in plain torch: one sequence after the other, one token after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F


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
    """x, dt, z (T, C), a (C, N), b, c (T, N), d, dt_bias (C), state (slots, N, C) -> (T, C).

    s = softplus(dt + dt_bias);  h = exp(s a) h + (s x) b;  y = (h c + d x) silu(z): in float32, rounded once.
    """
    out = x.new_empty(x.shape)
    starts = query_start.tolist()
    for r, (length, slot) in enumerate(zip(seq_lens.tolist(), slots.tolist(), strict=True)):
        first, last = starts[r], starts[r + 1]
        if first == last:
            continue
        h = torch.zeros_like(a) if last - first == length else state[slot].t()  # (C, N)
        for t in range(first, last):
            step = F.softplus(dt[t].float() + dt_bias)  # (C)
            h = torch.exp(step[:, None] * a) * h + (step * x[t].float())[:, None] * b[t].float()
            y = h @ c[t].float() + d * x[t].float()
            out[t] = (y * F.silu(z[t].float())).to(x.dtype)
        state[slot] = h.t()
    return out
