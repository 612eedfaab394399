"""Owns the way from each checkpoint format to PackedWeight, which loses nothing; reference.py says what the formats mean."""

from __future__ import annotations

import torch

from kernels.quantized_linear.packed import PackedWeight, pack_nibbles, unpack_nibbles
from kernels.quantized_linear.reference import BLOCK, awq_columns


def pack_scaled(weight: torch.Tensor, scale: torch.Tensor) -> PackedWeight:
    """weight (Dout, Din) float8_e4m3fn or int8; scale of all, of each row, or of blocks of 128 x 128.

    Raises ValueError for other formats and shapes.
    """
    kinds = {torch.float8_e4m3fn: "fp8", torch.int8: "int8"}
    if weight.dim() != 2 or weight.dtype not in kinds:
        raise ValueError(
            f"a scaled weight is (Dout, Din) float8_e4m3fn or int8, got {tuple(weight.shape)} {weight.dtype}"
        )
    dout, din = weight.shape
    blocks = (dout + BLOCK - 1) // BLOCK, (din + BLOCK - 1) // BLOCK
    if scale.numel() == 1:
        scales, group_size = scale.reshape(1, 1).float().repeat(1, dout), din
    elif scale.shape in ((dout,), (dout, 1)):
        scales, group_size = scale.reshape(1, dout).float(), din
    elif scale.shape == blocks:
        scales, group_size = scale.float().t().repeat_interleave(BLOCK, 1)[:, :dout], BLOCK
    else:
        raise ValueError(
            f"a weight ({dout}, {din}) takes a scale of all, of rows or of blocks, got {tuple(scale.shape)}"
        )
    return PackedWeight(kinds[weight.dtype], weight.contiguous(), scales.contiguous(), None, group_size)


def pack_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None,
    *,
    zero_offset: int = 1,
) -> PackedWeight:
    """qweight (Din / 8, Dout), qzeros (G, Dout / 8) int32, scales (G, Dout), g_idx (Din) or None for groups in order.

    Inputs whose groups are spread ("desc_act") are put in the order of their groups. Raises ValueError for groups that
    are not equally large, and for shapes that do not fit together.
    """
    num_groups, dout = scales.shape
    din = len(qweight) * 8
    if qweight.shape[1] != dout or qzeros.shape != (num_groups, dout // 8) or din % num_groups:
        raise ValueError(
            f"a GPTQ weight is (Din / 8, Dout), (G, Dout / 8) and (G, Dout), got "
            f"{[tuple(t.shape) for t in (qweight, qzeros, scales)]}"
        )
    group_size = din // num_groups
    in_order = torch.arange(din, device=qweight.device) // group_size
    order = None
    if g_idx is not None and not torch.equal(g_idx.long(), in_order):
        order = g_idx.argsort(stable=True)
        if g_idx.shape != (din,) or not torch.equal(g_idx.long()[order], in_order):
            raise ValueError(f"{num_groups} groups of {din} inputs are not equally large")
        qweight = pack_nibbles(unpack_nibbles(qweight, 0)[order])
    zeros = (unpack_nibbles(qzeros, 1) + zero_offset).to(torch.uint8)
    order = None if order is None else order.int()
    return PackedWeight("int4", qweight.contiguous(), scales.contiguous(), zeros, group_size, order)


def pack_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> PackedWeight:
    """qweight (Din, Dout / 8), qzeros (G, Dout / 8) int32, scales (G, Dout). Raises ValueError where these do not fit together."""
    num_groups, dout = scales.shape
    din = len(qweight)
    if qweight.shape[1] * 8 != dout or qzeros.shape != (num_groups, dout // 8) or din % num_groups or din % 8:
        raise ValueError(
            f"an AWQ weight is (Din, Dout / 8), (G, Dout / 8) and (G, Dout), got "
            f"{[tuple(t.shape) for t in (qweight, qzeros, scales)]}"
        )
    values, zeros = pack_nibbles(awq_columns(qweight)), awq_columns(qzeros).to(torch.uint8)
    return PackedWeight("int4", values, scales.contiguous(), zeros, din // num_groups)
