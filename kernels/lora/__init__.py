"""Adds low-rank adapters to a projection, each token its own; see reference.py for the definition.

The tokens of a step are sorted by their adapters once, by plan_lora, and every layer uses that plan.
"""

from __future__ import annotations

import dataclasses

import torch

from kernels.batch_invariance import is_on
from kernels.lora import cpu, reference
from kernels.row_groups import RowGroups, group_rows
from kernels.triton_path import use_triton

__all__ = ["LoraPlan", "add_lora", "plan_lora"]

_MAX_TILE = 64


@dataclasses.dataclass(frozen=True, slots=True)
class LoraPlan:
    """Which adapter each token of a step has, and the tokens by adapter."""

    adapters: torch.Tensor  # (T) int32, -1 for none
    rows: RowGroups
    num_adapters: int  # places for adapters, used or not


def plan_lora(adapters: torch.Tensor, num_adapters: int) -> LoraPlan:
    """adapters (T) int32: the place of each token's adapter, -1 for none. On a GPU nothing is read back."""
    average = len(adapters) // num_adapters
    tile_size = _MAX_TILE if is_on() or average > 32 else 16 if average <= 16 else 32
    return LoraPlan(adapters, group_rows(adapters, num_adapters, tile_size), num_adapters)


def add_lora(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: torch.Tensor, plan: LoraPlan
) -> None:
    """y (T, Dout) += scaling * (x A^T) B^T in place, where a token has an adapter.

    x (T, Din), a (N, r, Din), b (N, Dout, r), scaling (N) float32; an adapter of a lower rank than r has rows of zeros in a
    and columns of zeros in b. y may be columns of a fused projection's output; along these it is dense.
    """
    num_adapters, rank, din = a.shape
    dout = b.shape[1]
    if (
        b.shape != (num_adapters, dout, rank)
        or scaling.shape != (num_adapters,)
        or x.shape != (len(plan.adapters), din)
        or y.shape != (len(x), dout)
        or num_adapters != plan.num_adapters
    ):
        raise ValueError(
            f"add_lora takes y (T, Dout), x (T, Din), a (N, r, Din), b (N, Dout, r), scaling (N), got "
            f"{[tuple(t.shape) for t in (y, x, a, b, scaling)]} and a plan of {len(plan.adapters)} tokens, "
            f"{plan.num_adapters} adapters"
        )
    if not y.dtype == x.dtype == a.dtype == b.dtype:
        raise ValueError(f"add_lora takes one number format, got {[t.dtype for t in (y, x, a, b)]}")
    if use_triton(x):
        from kernels.lora import kernel

        kernel.add_lora(y, x, a, b, scaling, plan.rows)
        return
    (cpu if x.is_cpu else reference).add_lora(y, x, a, b, scaling, plan.adapters)
