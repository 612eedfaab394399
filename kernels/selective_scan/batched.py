"""Owns the selective scan in torch without a loop over sequences: they lie side by side, padded to the longest."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_MAX_ELEMENTS = 1 << 22  # of the states held at once (float32): longer sequences go in pieces


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
    """Shapes as in the public call. Sequences of one row and of several are two groups, so that none is padded by others."""
    out = x.new_empty(x.shape)
    counts = query_start.diff().long()
    steps = F.softplus(dt.float() + dt_bias)  # (T, C)
    for members in ((counts == 1).nonzero().flatten(), (counts > 1).nonzero().flatten()):
        if len(members):
            begins = counts[members] == seq_lens[members]
            group = query_start[:-1][members].long(), counts[members], slots[members], begins
            _padded(out, x, steps, a, b, c, d, z, state, *group)
    return out


def _padded(
    out: torch.Tensor,
    x: torch.Tensor,
    steps: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor,
    z: torch.Tensor,
    state: torch.Tensor,
    first_rows: torch.Tensor,
    counts: torch.Tensor,
    slots: torch.Tensor,
    begins: torch.Tensor,
) -> None:
    """Writes the rows of R sequences, and their last states; steps (T, C) float32; first_rows, counts, slots, begins (R)."""
    transition = a.t()  # (N, C)
    h = state[slots].masked_fill(begins[:, None, None], 0)  # (R, N, C); what a slot held before may be NaN
    most = int(counts.max())
    length = max(1, _MAX_ELEMENTS // h.numel())
    for first in range(0, most, length):
        offsets = torch.arange(first, min(most, first + length), device=x.device)[:, None]  # (n, 1)
        inside = offsets < counts  # (n, R)
        rows = (first_rows + offsets).where(inside, 0)
        outside = ~inside[..., None]  # (n, R, 1)
        step = steps[rows].masked_fill_(outside, 0)  # (n, R, C); a step of 0 leaves the state as it is
        decay = torch.exp(step[:, :, None] * transition)  # (n, R, N, C)
        driven = (step * x[rows].float()).masked_fill_(outside, 0)  # (n, R, C)
        states = driven[:, :, None] * b[rows].float().masked_fill(outside, 0)[..., None]  # (n, R, N, C)
        for i in range(len(states)):
            h = torch.addcmul(states[i], decay[i], h, out=states[i])
        y = (c[rows].float()[:, :, None] @ states)[:, :, 0]  # (n, R, 1, N) @ (n, R, N, C) -> (n, R, C)
        written = rows[inside]
        y = y[inside] + d * x[written].float()
        out[written] = (y * F.silu(z[written].float())).to(out.dtype)
    state[slots] = h
