"""Defines what quantized weights are worth, in each format as its checkpoints hold it, and the product with one, in plain torch.

All of them give (Dout, Din) float32. What is packed lies eight to an int32, four bits each, the lowest first.
"""

from __future__ import annotations

import torch

from kernels.quantized_linear.packed import PackedWeight, unpack

BLOCK = 128  # rows and columns that share a scale (DeepSeek-V3, 2024)
# Where AWQ puts columns 0..7 of eight: Lin et al., 2023, whose kernels take even and odd ones apart.
_AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def expand_scales(scale: torch.Tensor, dout: int, din: int) -> torch.Tensor:
    """Of a tensor (), (1,) or (1, 1), of rows (Dout,) or (Dout, 1), or of blocks of 128 x 128 -> (Dout, Din).

    Raises ValueError for another shape.
    """
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(dout, din)
    if scale.shape in ((dout,), (dout, 1)):
        return scale.reshape(dout, 1).expand(dout, din)
    if scale.shape == ((dout + BLOCK - 1) // BLOCK, (din + BLOCK - 1) // BLOCK):
        return scale.repeat_interleave(BLOCK, 0)[:dout].repeat_interleave(BLOCK, 1)[:, :din]
    raise ValueError(
        f"a weight ({dout}, {din}) takes a scale for all, for each row or for blocks, got {tuple(scale.shape)}"
    )


def dequantize_scaled(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """weight (Dout, Din) float8_e4m3fn or int8, scale as expand_scales takes it: the product of both."""
    return weight.float() * expand_scales(scale.float(), *weight.shape)


def dequantize_gptq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor, zero_offset: int
) -> torch.Tensor:
    """qweight (Din / 8, Dout), qzeros (G, Dout / 8) int32, scales (G, Dout), g_idx (Din): the group of each input.

    Frantar et al., 2022. zero_offset is 1 where zeros are stored less one, as all but the "gptq_v2" checkpoints do.
    """
    values = unpack(qweight, 0)  # (Din, Dout)
    zeros = unpack(qzeros, 1) + zero_offset  # (G, Dout)
    groups = g_idx.long()
    return (scales.float()[groups] * (values - zeros[groups]).float()).t()


def awq_columns(packed: torch.Tensor) -> torch.Tensor:
    """packed (N, Dout / 8) int32 -> (N, Dout) int32 in the order of the columns."""
    return unpack(packed, 1).unflatten(1, (-1, 8))[:, :, list(_AWQ_NIBBLES)].flatten(1)


def dequantize_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """qweight (Din, Dout / 8), qzeros (G, Dout / 8) int32, scales (G, Dout); groups of inputs lie one after the other."""
    size = len(qweight) // len(scales)
    zeros, scales = (t.repeat_interleave(size, 0) for t in (awq_columns(qzeros), scales))
    return (scales.float() * (awq_columns(qweight) - zeros).float()).t()


def dequantize(weight: PackedWeight) -> torch.Tensor:
    """The same of what packed.py made of one of these."""
    # A group at a time, as checkpoints are made plain by this while they load: what is written last is still in the cache.
    values = unpack(weight.values, 0).float() if weight.kind == "int4" else weight.values.float().t()  # (Din, Dout)
    for group, inputs in enumerate(values.split(weight.group_size)):
        if weight.zeros is not None:
            inputs -= weight.zeros[group]
        inputs *= weight.scales[group]
    if weight.input_order is None:
        return values.t()
    return torch.empty_like(values).index_copy_(0, weight.input_order.long(), values).t()


def quantized_linear(x: torch.Tensor, weight: PackedWeight, bias: torch.Tensor | None) -> torch.Tensor:
    """x (T, Din) -> (T, Dout) in x.dtype, rounded once at the end."""
    y = x.float() @ dequantize(weight).t()
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)
