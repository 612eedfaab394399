"""Owns the causal convolution in torch without a loop over sequences: their windows and rows in one tensor."""

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
    """Shapes as in the public call. Each sequence takes W - 1 + n rows of `seen`: its window, then its own."""
    num_taps, counts = weight.shape[1], query_start.diff().long()
    active = counts > 0
    counts, slots = counts[active], slots[active]
    if not len(counts):
        return x.new_empty(x.shape)
    begins = counts == seq_lens[active]
    before = window[slots].masked_fill(begins[:, None, None], 0)  # (R, W - 1, C); what a slot held before may be NaN
    ends = (counts + num_taps - 1).cumsum(0)  # (R), of each sequence in `seen`
    of_rows = torch.repeat_interleave(counts) + 1  # (T): how many windows lie before a row, its own counted
    places = torch.arange(len(x), device=x.device) + of_rows * (num_taps - 1)  # (T), in `seen`
    window_places = ends[:, None] - counts[:, None] - torch.arange(num_taps - 1, 0, -1, device=x.device)  # (R, W - 1)
    seen = x.new_empty(len(x) + len(counts) * (num_taps - 1), x.shape[1])
    seen[places] = x
    seen[window_places] = before
    taps = weight.float()
    y = torch.zeros(x.shape, device=x.device) if bias is None else bias.float().expand(x.shape)
    for tap in range(num_taps):
        y = torch.addcmul(y, seen[places - (num_taps - 1 - tap)].float(), taps[:, tap])
    window[slots] = seen[ends[:, None] - torch.arange(num_taps - 1, 0, -1, device=x.device)]
    return F.silu(y).to(x.dtype)
