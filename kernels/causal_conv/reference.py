"""Defines the causal convolution of state-space models in plain torch: one sequence after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    window: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """x (T, C), weight (C, W), bias (C), window (N, W - 1, C) -> silu(conv(x)) (T, C), in float32, rounded once."""
    out = x.new_empty(x.shape)
    starts = query_start.tolist()
    for r, (length, slot) in enumerate(zip(seq_lens.tolist(), slots.tolist(), strict=True)):
        rows = x[starts[r] : starts[r + 1]]
        n = len(rows)
        if n == 0:
            continue
        before = torch.zeros_like(window[slot]) if n == length else window[slot]
        seen = torch.cat((before, rows))  # (W - 1 + n, C)
        y = F.conv1d(
            seen.float().t(), weight.float()[:, None], None if bias is None else bias.float(), groups=len(weight)
        )
        out[starts[r] : starts[r + 1]] = F.silu(y.t()).to(x.dtype)
        window[slot] = seen[n:]
    return out
