"""Writes quantized checkpoints by the formats' own definitions: round to nearest, no library of ours."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
# A matrix (out, in) -> its tensors by what follows the layer's name, and what they stand for.
Quantize = Callable[[torch.Tensor], tuple[Tensors, torch.Tensor]]

GROUP = 16  # inputs that share a scale, where they divide evenly into such groups; else all of them
_PLAIN = re.compile(r".*(?:embed|wte|wpe|lm_head|norm|ln_|layernorm|\.gate\.weight|router|conv|dt_proj|x_proj).*")


@dataclasses.dataclass(frozen=True, slots=True)
class Scheme:
    """How to quantize, and what config.json says of it."""

    name: str
    config: dict[str, Any]
    quantize: Quantize

    def __str__(self) -> str:
        return self.name


def words(values: torch.Tensor, dim: int, num_bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Unsigned values along dim to int32: value order[i] of each word's goes into bits b i to b i + b - 1; short ends are 0."""
    values = values.long().movedim(dim, -1)
    to_a_word = 32 // num_bits
    values = torch.nn.functional.pad(values, (0, -values.shape[-1] % to_a_word)).unflatten(-1, (-1, to_a_word))
    packed = sum(values[..., place] << num_bits * i for i, place in enumerate(order or range(to_a_word)))
    return torch.where(packed >= 2**31, packed - 2**32, packed).int().movedim(-1, dim).contiguous()


def rounded(
    weight: torch.Tensor, num_bits: int, groups: torch.Tensor, *, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned values (out, in), float16 scales and zeros (out, G), and what they stand for; groups (in)."""
    num_groups, most = int(groups.max()) + 1, 2**num_bits - 1
    of_group = [weight[:, groups == g] for g in range(num_groups)]
    high = torch.stack([part.amax(1).clamp(min=0) for part in of_group], 1)
    low = torch.stack([part.amin(1).clamp(max=0) for part in of_group], 1)
    if symmetric:
        scales = (torch.maximum(high, -low) * 2 / most).clamp(min=1e-6).half()
        zeros = torch.full_like(scales, 2 ** (num_bits - 1)).int()
    else:
        scales = ((high - low) / most).clamp(min=1e-6).half()
        zeros = (-low / scales.float()).round().clamp(1, most).int()  # GPTQ's first version cannot write 0
    spread, shift = scales.float()[:, groups], zeros[:, groups]
    values = (weight / spread + shift).round().clamp(0, most).int()
    return values, scales, zeros, spread * (values - shift).float()


def groups_in_order(din: int) -> torch.Tensor:
    size = GROUP if din % GROUP == 0 else din
    return torch.arange(din) // size


def shuffled_groups(din: int) -> torch.Tensor:
    return groups_in_order(din)[torch.randperm(din, generator=torch.Generator().manual_seed(din))]


def gptq(num_bits: int = 4, *, offset: int = 1, act_order: bool = False, one_group: bool = False) -> Quantize:
    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        din = weight.shape[1]
        groups = shuffled_groups(din) if act_order else groups_in_order(din)
        groups = torch.zeros_like(groups) if one_group else groups
        values, scales, zeros, meant = rounded(weight, num_bits, groups, symmetric=False)
        return {
            "qweight": words(values.t(), 0, num_bits), "qzeros": words(zeros.t() - offset, 1, num_bits),
            "scales": scales.t().contiguous(), "g_idx": groups.int(),
        }, meant  # fmt: skip

    return quantize


def awq(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    values, scales, zeros, meant = rounded(weight, 4, groups_in_order(weight.shape[1]), symmetric=False)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        "qweight": words(values.t(), 1, 4, order), "qzeros": words(zeros.t(), 1, 4, order), "scales": scales.t().contiguous(),
    }, meant  # fmt: skip


def packed(num_bits: int, *, symmetric: bool, act_order: bool = False, one_group: bool = False) -> Quantize:
    """compressed-tensors' pack-quantized."""

    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        din = weight.shape[1]
        groups = shuffled_groups(din) if act_order else groups_in_order(din)
        groups = torch.zeros_like(groups) if one_group else groups
        values, scales, zeros, meant = rounded(weight, num_bits, groups, symmetric=symmetric)
        tensors = {
            "weight_packed": words(values, 1, num_bits), "weight_scale": scales, "weight_shape": torch.tensor(weight.shape),
        }  # fmt: skip
        if not symmetric:
            tensors["weight_zero_point"] = words(zeros, 0, num_bits)
        if act_order:
            tensors["weight_g_idx"] = groups.int()
        return tensors, meant

    return quantize


def int8(*, symmetric: bool) -> Quantize:
    """compressed-tensors' int-quantized and naive-quantized: signed numbers, a scale for each row."""

    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        one_group = torch.zeros(weight.shape[1], dtype=torch.long)
        values, scales, zeros, meant = rounded(weight, 8, one_group, symmetric=symmetric)
        tensors = {"weight": (values - 128).to(torch.int8), "weight_scale": scales}
        if not symmetric:
            tensors["weight_zero_point"] = (zeros - 128).to(torch.int8)
        return tensors, meant

    return quantize


def fp8(name: str, block: tuple[int, int] | None = None, *, beside: bool = False) -> Quantize:
    """A scale of all (block (0, 0)), of each row (None) or of each block; `beside`: with what is there for activations."""

    def quantize(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        dout, din = weight.shape
        rows, columns = block or (1, din)
        rows, columns = rows or dout, columns or din
        padded = torch.nn.functional.pad(weight, (0, -din % columns, 0, -dout % rows))
        blocks = padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns))  # (out / r, r, in / c, c)
        scale = (blocks.abs().amax((1, 3)) / 448).clamp(min=1e-6)
        spread = scale.repeat_interleave(rows, 0)[:dout].repeat_interleave(columns, 1)[:, :din]
        values = (weight / spread).to(torch.float8_e4m3fn)
        stored = scale.reshape(()) if block == (0, 0) else scale
        extra = {"input_scale": torch.ones(())} if beside else {}
        return {"weight": values, name: stored, **extra}, values.float() * spread

    return quantize


def _compressed(format: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
SCHEMES = [
    Scheme("gptq", {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False}, gptq()),
    Scheme("gptq-v2-act-order", {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True,
           "checkpoint_format": "gptq_v2"}, gptq(offset=0, act_order=True)),
    Scheme("gptq-8-bits-one-group", {"quant_method": "gptq", "bits": 8, "group_size": -1}, gptq(8, one_group=True)),
    Scheme("awq", {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}, awq),
    Scheme("fp8-blocks", {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 16]},
           fp8("weight_scale_inv", (32, 16))),
    Scheme("fp8-tensor", {"quant_method": "fp8", "activation_scheme": "static"}, fp8("weight_scale", (0, 0), beside=True)),
    Scheme("float-quantized", _compressed("float-quantized", num_bits=8, type="float", strategy="channel"), fp8("weight_scale")),
    Scheme("int-quantized", _compressed("int-quantized", num_bits=8, type="int", strategy="channel"), int8(symmetric=True)),
    Scheme("naive-quantized-asymmetric", _compressed("naive-quantized", num_bits=8, type="int", strategy="channel",
           symmetric=False), int8(symmetric=False)),
    Scheme("pack-quantized", _compressed("pack-quantized", **_INT4, symmetric=True), packed(4, symmetric=True)),
    Scheme("pack-quantized-asymmetric-act-order", _compressed("pack-quantized", **_INT4, symmetric=False, actorder="group"),
           packed(4, symmetric=False, act_order=True)),
    Scheme("pack-quantized-8-bits", _compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
           packed(8, symmetric=True, one_group=True)),
    Scheme("pack-quantized-8-bits-asymmetric", _compressed("pack-quantized", num_bits=8, type="int", strategy="group",
           symmetric=False), packed(8, symmetric=False)),
]  # fmt: skip


def scheme_of(name: str) -> Scheme:
    return next(scheme for scheme in SCHEMES if scheme.name == name)


def quantize_checkpoint(
    tensors: Tensors, scheme: Scheme, *, inputs_first: bool = False
) -> tuple[Tensors, Tensors, list[str]]:
    """The checkpoint with its layers' matrices quantized, the same with what these stand for, and the names of these.

    inputs_first: matrices are (in, out), which quantizers turn to (out, in) before they begin.
    """
    stored, meant, names = {}, {}, []
    for name, tensor in tensors.items():
        prefix = name.removesuffix(".weight")
        if prefix == name or tensor.dim() != 2 or _PLAIN.fullmatch(name):
            stored[name] = meant[name] = tensor
            continue
        parts, matrix = scheme.quantize(tensor.t() if inputs_first else tensor)
        stored |= {f"{prefix}.{part}": value for part, value in parts.items()}
        meant[name] = matrix.t().contiguous() if inputs_first else matrix
        names.append(name)
    return stored, meant, names
