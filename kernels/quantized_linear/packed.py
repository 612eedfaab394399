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
    """A matrix (Dout, Din): scale * (value - zero). Its tensors are dense."""

    kind: str  # fp8 (e4m3fn), int8 or int4
    values: (
        torch.Tensor
    )  # (Dout, Din) float8_e4m3fn or int8; or (Din / 8, Dout) int32, input 8 i + j in bits 4 j to 4 j + 3
    scales: torch.Tensor  # (G, Dout) float32, float16 or bfloat16
    zeros: torch.Tensor | None  # (G, Dout) uint8 of int4; int16 of int8 that is not symmetric; else None
    group_size: int  # inputs that share a scale; the last group may be shorter
    input_order: torch.Tensor | None = None  # (Din) int32: which input the values' i-th belongs to, None for itself

    @property
    def din(self) -> int:
        return len(self.values) * 8 if self.kind == "int4" else self.values.shape[1]

    @property
    def dout(self) -> int:
        return self.scales.shape[1]


def unpack(packed: torch.Tensor, dim: int, num_bits: int = 4) -> torch.Tensor:
    """int32 -> int32 of 32 / num_bits times the size along dim (0 or 1): the lowest bits first. num_bits divides 32."""
    shifts, mask = torch.arange(0, 32, num_bits, dtype=torch.int32, device=packed.device), (1 << num_bits) - 1
    if dim == 0:
        return ((packed[:, None] >> shifts[None, :, None]) & mask).flatten(0, 1)
    return ((packed[:, :, None] >> shifts) & mask).flatten(1)


def pack_nibbles(values: torch.Tensor) -> torch.Tensor:
    """values (Din, Dout) from 0 to 15 -> (Din / 8, Dout) int32."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=values.device)
    return (values.int().unflatten(0, (-1, 8)) << shifts[:, None]).sum(1, dtype=torch.int32)


def fits_kernel(weight: PackedWeight) -> bool:
    """Whether the kernel on a GPU takes its groups: a single one, or of a multiple of 16 inputs, which a tile can keep to."""
    return len(weight.scales) == 1 or weight.group_size % 16 == 0


def select_rows(weight: PackedWeight, rows: torch.Tensor) -> PackedWeight:
    """The matrix of some outputs, in this order; rows (n) int64."""
    packed, values = weight.kind == "int4", weight.values
    # As bytes, since not every device picks rows of float8.
    values = values[:, rows] if packed else values.view(torch.uint8)[rows].view(values.dtype)
    return dataclasses.replace(
        weight,
        values=values,
        scales=weight.scales[:, rows],
        zeros=None if weight.zeros is None else weight.zeros[:, rows],
    )


def concatenate(weights: Sequence[PackedWeight]) -> PackedWeight:
    """Fuses projections of the same input along their outputs. Raises ValueError where they are packed in different ways."""
    first = weights[0]
    for other in weights[1:]:
        order, other_order = first.input_order, other.input_order
        same_order = order is other_order if order is None or other_order is None else torch.equal(order, other_order)
        same_zeros = (first.zeros is None) == (other.zeros is None)
        same = (getattr(first, name) == getattr(other, name) for name in ("kind", "group_size", "din"))
        if not (same_order and same_zeros and all(same)):
            raise ValueError(
                f"a {first.kind} weight of {first.din} inputs in groups of {first.group_size} cannot be fused with a "
                f"{other.kind} one of {other.din} in groups of {other.group_size}"
                + ("" if same_order else ", whose inputs are in another order")
                + ("" if same_zeros else ", one with zeros and one without")
            )
    return dataclasses.replace(
        first,
        values=torch.cat([weight.values for weight in weights], 1 if first.kind == "int4" else 0),
        scales=torch.cat([weight.scales for weight in weights], 1),
        zeros=None if first.zeros is None else torch.cat([weight.zeros for weight in weights], 1),
    )
