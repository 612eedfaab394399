"""Owns the one form in which quantized weights are held, whatever format their checkpoint has.

Values stay as narrow as they came. Inputs are cut into groups that lie one after the other; each group has a scale for each
output, and the four-bit ones a zero. A scale of the whole tensor is one group whose scales are equal, so that projections of
any of these can be fused along their outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class PackedWeight:
    """A matrix (Dout, Din): scale * (value - zero)."""

    kind: str  # fp8 (e4m3fn), int8 or int4
    values: (
        torch.Tensor
    )  # (Dout, Din) float8_e4m3fn or int8; or (Din / 8, Dout) int32, input 8 i + j in bits 4 j to 4 j + 3
    scales: torch.Tensor  # (G, Dout) float32, float16 or bfloat16
    zeros: torch.Tensor | None  # (G, Dout) uint8, of int4 alone
    group_size: int  # inputs that share a scale; the last group may be shorter
    input_order: torch.Tensor | None = None  # (Din) int32: which input the values' i-th belongs to, None for itself

    @property
    def din(self) -> int:
        return len(self.values) * 8 if self.kind == "int4" else self.values.shape[1]

    @property
    def dout(self) -> int:
        return self.scales.shape[1]


def unpack_nibbles(packed: torch.Tensor, dim: int) -> torch.Tensor:
    """int32 -> int32 of eight times the size along dim (0 or 1): the lowest four bits first."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    if dim == 0:
        return ((packed[:, None] >> shifts[None, :, None]) & 15).flatten(0, 1)
    return ((packed[:, :, None] >> shifts) & 15).flatten(1)


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """values (Din, Dout) from 0 to 15 -> (Din / 8, Dout) int32."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=values.device)
    return (values.int().unflatten(0, (-1, 8)) << shifts[:, None]).sum(1, dtype=torch.int32)


def concatenate(weights: Sequence[PackedWeight]) -> PackedWeight:
    """Fuses projections of the same input along their outputs. Raises ValueError where they are packed in different ways."""
    first = weights[0]
    for other in weights[1:]:
        orders = first.input_order, other.input_order
        same_order = torch.equal(*orders) if None not in orders else orders[0] is orders[1]
        if not same_order or any(
            getattr(first, name) != getattr(other, name) for name in ("kind", "group_size", "din")
        ):
            raise ValueError(
                f"a {first.kind} weight of {first.din} inputs in groups of {first.group_size} cannot be fused with a "
                f"{other.kind} one of {other.din} in groups of {other.group_size}"
                + ("" if same_order else ", whose inputs are in another order")
            )
    return dataclasses.replace(
        first,
        values=torch.cat([weight.values for weight in weights], 1 if first.kind == "int4" else 0),
        scales=torch.cat([weight.scales for weight in weights], 1),
        zeros=None if first.zeros is None else torch.cat([weight.zeros for weight in weights], 1),
    )
