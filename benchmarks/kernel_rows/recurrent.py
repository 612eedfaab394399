"""Rows of state-space layers: the convolution and the scan, of single tokens of many sequences and of long prompts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.kernel_rows import Place, Row
from kernels.causal_conv import causal_conv
from kernels.selective_scan import selective_scan

TAPS, STATES = 4, 16


def _ragged(place: Place, num_seqs: int, n: int) -> tuple[torch.Tensor, ...]:
    """query_start, seq_lens and slots of sequences with n rows each, which go on."""
    starts = torch.arange(num_seqs + 1, device=place.device, dtype=torch.int32) * n
    return starts, torch.full_like(starts[1:], n + 5), torch.randperm(num_seqs, device=place.device)


def convolutions(place: Place) -> Iterator[Row]:
    for num_seqs, n in ((64, 1), (1, 8192), (16, 512)):
        channels, rows, seqs = place.scaled(8192, 64), place.scaled(n), place.scaled(num_seqs)
        x, weight, bias = place.normal(seqs * rows, channels), place.normal(channels, TAPS), place.normal(channels)
        # Equal rows and windows: however often it moves on, a window is the one it was.
        x[:] = x[:1]
        window = x[:1].expand(seqs, TAPS - 1, channels).contiguous()
        ragged = _ragged(place, seqs, rows)

        def torch_ops(x=x, weight=weight, bias=bias, window=window, ragged=ragged, seqs=seqs):
            before = window[ragged[2]]
            seen = torch.cat((before, x.view(seqs, -1, x.shape[1])), 1).transpose(1, 2)  # (B, C, W - 1 + n)
            window[ragged[2]] = seen[:, :, 1 - TAPS :].transpose(1, 2)
            y = F.conv1d(seen, weight[:, None], bias, groups=len(weight))
            return F.silu(y).transpose(1, 2).flatten(0, 1)

        yield Row(
            f"causal convolution B={num_seqs} n={n} C=8192",
            lambda x=x, weight=weight, bias=bias, window=window, ragged=ragged: causal_conv(
                x, weight, bias, window, *ragged
            ),
            2 * (x.numel() + window.numel()) * x.element_size(),
            2 * x.numel() * TAPS,
            {"conv1d": torch_ops},
        )


def scans(place: Place) -> Iterator[Row]:
    for num_seqs, n in ((64, 1), (1, 8192), (16, 512)):
        channels, rows, seqs = place.scaled(8192, 64), place.scaled(n), place.scaled(num_seqs)
        x, dt, z = (place.normal(seqs * rows, channels) for _ in range(3))
        b, c = (place.normal(seqs * rows, STATES) for _ in range(2))
        # States that a step of 1 halves and refills would differ from call to call; these are forgotten at once.
        a = torch.full((channels, STATES), -1e4, device=place.device)
        d, dt_bias = torch.ones(channels, device=place.device), torch.ones(channels, device=place.device)
        state = torch.zeros(seqs, STATES, channels, device=place.device)
        ragged = _ragged(place, seqs, rows)

        def one_step(x=x, dt=dt, a=a, b=b, c=c, d=d, z=z, dt_bias=dt_bias, state=state, ragged=ragged):
            step = F.softplus(dt.float() + dt_bias)  # (B, C)
            h = (
                torch.exp(step[:, None] * a.t()) * state[ragged[2]]
                + (step * x.float())[:, None] * b.float()[:, :, None]
            )
            state[ragged[2]] = h
            y = torch.einsum("bnc,bn->bc", h, c.float()) + d * x.float()
            return (y * F.silu(z.float())).to(x.dtype)

        args = x, dt, a, b, c, d, z, dt_bias, state, *ragged
        yield Row(
            f"selective scan B={num_seqs} n={n} C=8192 N=16",
            lambda args=args: selective_scan(*args),
            4 * x.numel() * x.element_size() + 2 * state.numel() * 4,
            7 * x.numel() * STATES,
            compiled={"torch.compile": one_step} if n == 1 else {},
        )


ROWS = (convolutions, scans)
