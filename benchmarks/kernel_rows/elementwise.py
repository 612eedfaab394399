"""Rows of norms and activations: each number is read and written once, so that memory bounds them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.kernel_rows import Place, Row
from kernels.activation import act_and_mul
from kernels.layer_norm import layer_norm
from kernels.rms_norm import add_rms_norm, rms_norm

TOKENS = (1, 64, 8192)


def norms(place: Place) -> Iterator[Row]:
    for tokens in TOKENS:
        for size in (896, 4096, 12288):
            x, weight = place.normal(place.scaled(tokens), size), place.normal(size)
            # Zeros are added, so that each call finds the residual that the one before it found.
            zeros, bytes_of_x = torch.zeros_like(x), x.numel() * x.element_size()
            yield Row(
                f"add and RMS norm T={tokens} D={size}",
                lambda x=x, weight=weight, zeros=zeros: add_rms_norm(zeros, x, weight, 1e-6)[0],
                4 * bytes_of_x,
                rivals={"rms_norm": lambda x=x, w=weight, z=zeros: F.rms_norm(x.add_(z), (len(w),), w, 1e-6)},
                compiled={"torch.compile": lambda x=x, w=weight, z=zeros: F.rms_norm(x.add_(z), (len(w),), w, 1e-6)},
            )
        yield Row(
            f"layer norm T={tokens} D={size}",
            lambda x=x, weight=weight: layer_norm(x, weight, weight, 1e-5),
            2 * bytes_of_x,
            rivals={"layer_norm": lambda x=x, w=weight: F.layer_norm(x, (len(w),), w, w, 1e-5)},
        )


def norms_of_heads(place: Place) -> Iterator[Row]:
    for tokens in TOKENS:
        q, weight = place.normal(place.scaled(tokens), 48, 128)[:, :32], place.normal(128)
        yield Row(
            f"RMS norm of heads T={tokens} H=32 K=128",
            lambda q=q, weight=weight: rms_norm(q, weight, 1e-6),
            2 * q.numel() * q.element_size(),
            rivals={"rms_norm": lambda q=q, weight=weight: F.rms_norm(q, (128,), weight, 1e-6)},
        )


def gates(place: Place) -> Iterator[Row]:
    for tokens in TOKENS:
        x = place.normal(place.scaled(tokens), 2 * 14336)

        def torch_ops(x=x):
            gate, up = x.chunk(2, 1)
            return F.silu(gate) * up

        yield Row(
            f"SiLU gate T={tokens} F=14336",
            lambda x=x: act_and_mul("silu", x),
            3 * x.numel() * x.element_size() // 2,
            compiled={"torch.compile": torch_ops},
        )


ROWS = (norms, norms_of_heads, gates)
