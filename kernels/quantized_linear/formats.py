"""Owns the way from each checkpoint format to PackedWeight, which loses nothing; reference.py says what the formats mean.

All raise ValueError for tensors that do not fit together.
"""

from __future__ import annotations

import torch

from kernels.quantized_linear.packed import PackedWeight, pack_nibbles, unpack
from kernels.quantized_linear.reference import BLOCK, awq_columns

_MIDDLE = 128  # of eight unsigned bits: what int8 has as 0


def pack_scaled(
    weight: torch.Tensor,
    scale: torch.Tensor,
    zeros: torch.Tensor | None = None,
    *,
    block: tuple[int, int] = (BLOCK, BLOCK),
) -> PackedWeight:
    """weight (Dout, Din) float8_e4m3fn or int8; scale of all, of rows, of groups (Dout, G), or of blocks of rows x inputs.

    zeros as the scale, of int8 alone.
    """
    kinds = {torch.float8_e4m3fn: "fp8", torch.int8: "int8"}
    if weight.dim() != 2 or weight.dtype not in kinds:
        raise ValueError(
            f"a scaled weight is (Dout, Din) float8_e4m3fn or int8, got {tuple(weight.shape)} {weight.dtype}"
        )
    kind = kinds[weight.dtype]
    if zeros is not None and (zeros.shape != scale.shape or kind == "fp8"):
        raise ValueError(
            f"zeros {tuple(zeros.shape)} {zeros.dtype} are not those of {kind} scales {tuple(scale.shape)}"
        )
    scales, group_size = _by_group(scale.float(), *weight.shape, block)
    if zeros is not None:
        zeros = _by_group(zeros.short(), *weight.shape, block)[0].contiguous() if zeros.any() else None
    return PackedWeight(kind, weight.contiguous(), scales.contiguous(), zeros, group_size)


def _by_group(scale: torch.Tensor, dout: int, din: int, block: tuple[int, int]) -> tuple[torch.Tensor, int]:
    """(G, Dout) and the inputs of a group, from any of the shapes that pack_scaled takes."""
    if scale.numel() == 1:
        return scale.reshape(1, 1).repeat(1, dout), din
    if scale.shape in ((dout,), (dout, 1)):
        return scale.reshape(1, dout), din
    if scale.shape == (-(-dout // block[0]), -(-din // block[1])):
        return scale.t().repeat_interleave(block[0], 1)[:, :dout], block[1]
    if scale.dim() == 2 and len(scale) == dout and din % scale.shape[1] == 0:
        return scale.t(), din // scale.shape[1]
    raise ValueError(
        f"a weight ({dout}, {din}) takes a scale of all, of rows, of groups or of blocks of {block[0]} x {block[1]}, "
        f"got {tuple(scale.shape)}"
    )


def pack_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None,
    *,
    zero_offset: int = 1,
    num_bits: int = 4,
    group_size: int | None = None,
) -> PackedWeight:
    """qweight (Din b / 32, Dout), qzeros (G, Dout b / 32) int32, scales (G, Dout), g_idx (Din) or None for groups in order.

    b is num_bits, 4 or 8. group_size is needed where the last group is shorter. Inputs whose groups are spread
    ("desc_act") are put in the order of their groups.
    """
    (num_groups, dout), to_a_word = scales.shape, 32 // num_bits
    din = len(qweight) * to_a_word
    if group_size is None and din % num_groups == 0:
        group_size = din // num_groups
    fits = qweight.shape[1] == dout and qzeros.shape == (num_groups, dout // to_a_word)
    if not fits or dout % to_a_word or group_size is None or -(-din // group_size) != num_groups:
        raise ValueError(
            f"a GPTQ weight is (Din / {to_a_word}, Dout), (G, Dout / {to_a_word}) and (G, Dout), got "
            f"{[tuple(t.shape) for t in (qweight, qzeros, scales)]}"
        )
    zeros = unpack(qzeros, 1, num_bits) + zero_offset
    if num_bits == 4 and _order(g_idx, din, group_size) is None:  # as it is held here
        return PackedWeight("int4", qweight.contiguous(), scales.contiguous(), zeros.to(torch.uint8), group_size)
    values = unpack(qweight, 0, num_bits)
    return pack_integers(values, zeros, scales, g_idx, num_bits=num_bits, group_size=group_size)


def pack_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> PackedWeight:
    """qweight (Din, Dout / 8), qzeros (G, Dout / 8) int32, scales (G, Dout)."""
    num_groups, dout = scales.shape
    din = len(qweight)
    if qweight.shape[1] * 8 != dout or qzeros.shape != (num_groups, dout // 8) or din % num_groups or din % 8:
        raise ValueError(
            f"an AWQ weight is (Din, Dout / 8), (G, Dout / 8) and (G, Dout), got "
            f"{[tuple(t.shape) for t in (qweight, qzeros, scales)]}"
        )
    return pack_integers(awq_columns(qweight), awq_columns(qzeros), scales, group_size=din // num_groups)


def pack_integers(
    values: torch.Tensor,
    zeros: torch.Tensor | None,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None = None,
    *,
    num_bits: int = 4,
    group_size: int,
) -> PackedWeight:
    """values (Din, Dout) and zeros (G, Dout) unsigned in int32, scales (G, Dout), g_idx (Din) or None for groups in order.

    No zeros: the middle of the range.
    """
    din, dout = values.shape
    if scales.shape != (-(-din // group_size), dout) or (zeros is not None and zeros.shape != scales.shape):
        raise ValueError(f"a weight ({dout}, {din}) in groups of {group_size} takes no {tuple(scales.shape)} scales")
    order = _order(g_idx, din, group_size)
    if order is not None:
        values = values[order.long()]
    scales = scales.contiguous()
    if num_bits == 8:
        zeros = None if zeros is None or (zeros == _MIDDLE).all() else (zeros - _MIDDLE).short().contiguous()
        signed = (values - _MIDDLE).to(torch.int8).t().contiguous()
        return PackedWeight("int8", signed, scales, zeros, group_size, order)
    if din % 8:
        raise ValueError(f"weights of four bits take a multiple of 8 inputs, not {din}")
    zeros = torch.full_like(scales, 8, dtype=torch.uint8) if zeros is None else zeros.to(torch.uint8).contiguous()
    return PackedWeight("int4", pack_nibbles(values).contiguous(), scales, zeros, group_size, order)


def _order(g_idx: torch.Tensor | None, din: int, group_size: int) -> torch.Tensor | None:
    """The inputs in the order of their groups (Din) int32; None where they are in it."""
    if g_idx is None:
        return None
    in_order = torch.arange(din, device=g_idx.device) // group_size
    if torch.equal(g_idx.long(), in_order):
        return None
    order = g_idx.argsort(stable=True)
    if g_idx.shape != (din,) or not torch.equal(g_idx.long()[order], in_order):
        raise ValueError(f"{-(-din // group_size)} groups of {din} inputs are not equally large")
    return order.int()
