"""Owns the cases of matrix products: plain, of heads, of experts, quantized, and of adapters."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import kernels.head_linear.reference
import kernels.linear.reference
import kernels.lora.reference
import kernels.moe_experts.reference
import kernels.quantized_linear.reference
from kernels.head_linear import head_linear
from kernels.linear import linear
from kernels.lora import add_lora, plan_lora
from kernels.moe_experts import moe_experts
from kernels.quantized_linear import PackedWeight, pack_awq, pack_scaled, quantized_linear
from kernels.verification.case import Case, Place, of_rows

TOKENS = (1, 30, 300)  # which take another way each


def linears(place: Place) -> Iterator[Case]:
    weight, bias = place.normal(101, 336, seed=1) * 336**-0.5, place.normal(101, seed=2)
    for tokens in TOKENS:
        x = place.normal(tokens, 336)
        yield of_rows(
            f"({tokens}, 336) x (336, 101)",
            tokens,
            lambda rows, x=x: (linear(x[rows], weight, bias),),
            lambda x=x: (kernels.linear.reference.linear(x, weight, bias),),
        )


def products_of_heads(place: Place) -> Iterator[Case]:
    weight = place.normal(3, 56, 40, seed=1) * 40**-0.5
    for tokens in TOKENS:
        x = place.normal(tokens, 3, 40)
        yield of_rows(
            f"({tokens}, 3, 40) x (3, 40, 56)",
            tokens,
            lambda rows, x=x: (head_linear(x[rows], weight),),
            lambda x=x: (kernels.head_linear.reference.head_linear(x, weight),),
        )


def experts(place: Place) -> Iterator[Case]:
    gate_up, down = place.normal(9, 2 * 24, 40, seed=1) * 40**-0.5, place.normal(9, 40, 24, seed=2) * 24**-0.5
    for tokens in TOKENS:
        x, scores = place.normal(tokens, 40), place.normal(tokens, 9, seed=3, dtype=torch.float32).softmax(-1)
        chosen = scores.topk(2)
        yield of_rows(
            f"({tokens}, 40), 2 of 9 of size 24",
            tokens,
            lambda rows, x=x, c=chosen: (moe_experts(x[rows], gate_up, down, "silu", c.values[rows], c.indices[rows]),),
            lambda x=x, c=chosen: (
                kernels.moe_experts.reference.moe_experts(x, gate_up, down, "silu", c.values, c.indices),
            ),
        )


def _quantized(place: Place) -> Iterator[tuple[str, PackedWeight]]:
    values = place.below(255, 72, 256, dtype=torch.int8) - 127
    scales = place.normal(72, dtype=torch.float32).abs() / 2000
    yield "int8 by rows", pack_scaled(values, scales)
    blocks = place.normal(1, 2, dtype=torch.float32).abs() / 20
    yield "float8 in blocks", pack_scaled(place.normal(72, 256, dtype=torch.float32).to(torch.float8_e4m3fn), blocks)
    words = (place.below(1 << 32, *shape, seed=seed) - (1 << 31) for seed, shape in enumerate(((256, 9), (2, 9))))
    yield (
        "int4 (AWQ)",
        pack_awq(*(t.to(torch.int32) for t in words), place.normal(2, 72, dtype=torch.float16).abs() / 100),
    )


def quantized(place: Place) -> Iterator[Case]:
    bias = place.normal(72, seed=5)
    for name, weight in _quantized(place):
        x = place.normal(30, 256)
        yield of_rows(
            f"{name}, (30, 256) x (256, 72)",
            len(x),
            lambda rows, x=x, w=weight: (quantized_linear(x[rows], w, bias),),
            lambda x=x, w=weight: (kernels.quantized_linear.reference.quantized_linear(x, w, bias),),
        )


def adapters(place: Place) -> Iterator[Case]:
    a, b = place.normal(4, 8, 72, seed=1) * 72**-0.5, place.normal(4, 56, 8, seed=2) * 8**-0.5
    scaling = place.normal(4, seed=3, dtype=torch.float32)
    for tokens in TOKENS:
        x, y = place.normal(tokens, 72, seed=4), place.normal(tokens, 56, seed=5)
        of = place.below(5, tokens, dtype=torch.int32) - 1

        def call(rows: slice, x: torch.Tensor = x, y: torch.Tensor = y, of: torch.Tensor = of) -> tuple[torch.Tensor]:
            added = y[rows].clone()
            add_lora(added, x[rows], a, b, scaling, plan_lora(of[rows], 4))
            return (added,)

        def expected(x: torch.Tensor = x, y: torch.Tensor = y, of: torch.Tensor = of) -> tuple[torch.Tensor]:
            added = y.clone()
            kernels.lora.reference.add_lora(added, x, a, b, scaling, of)
            return (added,)

        yield of_rows(f"({tokens}, 72) to 56, 4 of rank 8", tokens, call, expected)


CASES = {
    "head_linear": products_of_heads,
    "linear": linears,
    "lora": adapters,
    "moe_experts": experts,
    "quantized_linear": quantized,
}
