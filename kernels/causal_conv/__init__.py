"""Convolves each channel over the last few tokens; see reference.py for the definition."""

from __future__ import annotations

import torch

from kernels.causal_conv import batched, cpu
from kernels.triton_path import use_triton

__all__ = ["causal_conv"]


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    window: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """x (T, C), weight (C, W), bias (C), query_start (R + 1), seq_lens (R) int32, slots (R) int64 -> silu(conv(x)) (T, C).

    Sequence r has n = query_start[r + 1] - query_start[r] rows, 0 allowed; they are its last n of seq_lens[r] tokens. The
    W - 1 tokens before them lie in window[slots[r]] (W - 1, C), oldest first, which is overwritten with the last W - 1;
    before a sequence that begins with its rows (n equals seq_lens[r]) there are zeros, whatever lies in memory.
    """
    if x.dim() != 2 or weight.dim() != 2 or window.dim() != 3:
        raise ValueError(
            f"causal_conv takes x (T, C), weight (C, W) and window (N, W - 1, C), got "
            f"{[tuple(t.shape) for t in (x, weight, window)]}"
        )
    num_channels, num_taps = weight.shape
    if x.shape[1] != num_channels or window.shape[1:] != (num_taps - 1, num_channels):
        raise ValueError(
            f"causal_conv with {num_channels} channels and {num_taps} taps got x {tuple(x.shape)} and window {tuple(window.shape)}"
        )
    if bias is not None and bias.shape != (num_channels,):
        raise ValueError(f"bias takes one value for each of {num_channels} channels, got {tuple(bias.shape)}")
    if not len(query_start) - 1 == len(seq_lens) == len(slots):
        raise ValueError(
            f"{len(seq_lens)} sequences need one more query_start and as many slots, got {len(query_start)} and {len(slots)}"
        )
    path = cpu if x.is_cpu else batched
    if use_triton(x):
        from kernels.causal_conv import kernel as path
    return path.causal_conv(x, weight, bias, window, query_start, seq_lens, slots)
