"""Rows of products other than the library's: of heads, batch-invariant, with quantized weights, and of adapters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.kernel_rows import Place, Row
from kernels.batch_invariance import batch_invariant
from kernels.head_linear import head_linear
from kernels.linear import linear
from kernels.lora import add_lora, plan_lora
from kernels.quantized_linear import PackedWeight, pack_gptq, pack_scaled, quantized_linear, reference

TOKENS = (1, 16, 64, 4096)


def one_way_for_all(place: Place) -> Iterator[Row]:
    def invariant(x: torch.Tensor) -> torch.Tensor:
        with batch_invariant():
            return linear(x, weight)

    din, dout = place.scaled(4096, 64), place.scaled(4096, 64)
    weight = place.normal(dout, din) * din**-0.5
    for tokens in TOKENS:
        x = place.normal(place.scaled(tokens), din)
        yield Row(
            f"batch-invariant product T={tokens} 4096 x 4096",
            lambda x=x: invariant(x),
            (weight.numel() + 2 * x.numel()) * x.element_size(),
            2 * len(x) * weight.numel(),
            {"linear": lambda x=x: F.linear(x, weight)},
        )


def heads(place: Place) -> Iterator[Row]:
    weight = place.normal(16, 512, 128) * 128**-0.5
    for tokens in TOKENS:
        x = place.normal(place.scaled(tokens), 16, 128)
        yield Row(
            f"product of heads T={tokens} H=16 128 x 512",
            lambda x=x: head_linear(x, weight),
            (weight.numel() + 5 * x.numel()) * x.element_size(),
            2 * len(x) * weight.numel(),
            {"bmm": lambda x=x: torch.bmm(x.transpose(0, 1), weight.transpose(1, 2)).transpose(0, 1).contiguous()},
        )


def quantized(place: Place) -> Iterator[Row]:
    din, dout = (place.scaled(count, 128) // 128 * 128 for count in (4096, 14336))
    for name, weight in _quantized_weights(place, din, dout):
        dense = reference.dequantize(weight).to(place.dtype)
        weight_bytes = sum(
            t.numel() * t.element_size() for t in (weight.values, weight.scales, weight.zeros) if t is not None
        )
        for tokens in TOKENS:
            x = place.normal(place.scaled(tokens), din)
            yield Row(
                f"{name} product T={tokens} 4096 x 14336",
                lambda x=x, weight=weight: quantized_linear(x, weight),
                weight_bytes + len(x) * (din + dout) * x.element_size(),
                2 * len(x) * din * dout,
                {"linear, not quantized": lambda x=x, dense=dense: F.linear(x, dense)},
            )


def _quantized_weights(place: Place, din: int, dout: int) -> Iterator[tuple[str, PackedWeight]]:
    codes = place.normal(dout, din).to(torch.float8_e4m3fn)
    blocks = torch.full((-(-dout // 128), -(-din // 128)), din**-0.5, device=place.device)
    yield "fp8 in blocks", pack_scaled(codes, blocks)
    yield "int8", pack_scaled((30 * place.normal(dout, din)).to(torch.int8), blocks[0, 0].expand(dout) / 30)
    words, zeros = (
        torch.randint(-(2**31), 2**31, shape, device=place.device).int()
        for shape in ((din // 8, dout), (din // 128, dout // 8))
    )
    scales = torch.full((din // 128, dout), din**-0.5 / 5, device=place.device, dtype=torch.float16)
    yield "int4 in groups", pack_gptq(words, zeros, scales, None)


def adapters(place: Place) -> Iterator[Row]:
    din, dout, rank, num_adapters = place.scaled(4096, 64), place.scaled(4096, 64), 16, 8
    a, b = place.normal(num_adapters, rank, din), place.normal(num_adapters, dout, rank)
    scaling = torch.zeros(num_adapters, device=place.device)  # each call finds the y that the one before it found
    for tokens in TOKENS:
        x, y = place.normal(place.scaled(tokens), din), place.normal(place.scaled(tokens), dout)
        chosen = torch.randint(num_adapters, (len(x),), device=place.device)
        plan = plan_lora(chosen.int(), num_adapters)

        def ours(x=x, y=y, plan=plan):
            add_lora(y, x, a, b, scaling, plan)
            return y

        def each_token(x=x, y=y, chosen=chosen):
            low = torch.bmm(a[chosen], x[:, :, None])
            return y + torch.bmm(b[chosen], low)[:, :, 0] * scaling[chosen, None].to(y.dtype)

        num_used = min(num_adapters, len(x))
        yield Row(
            f"adapters of rank 16 T={tokens} N=8 4096 x 4096",
            ours,
            (num_used * rank * (din + dout) + x.numel() + 2 * y.numel()) * x.element_size(),
            2 * len(x) * rank * (din + dout),
            {"gathered matrices": each_token} if tokens <= 64 else {},
        )


ROWS = (one_way_for_all, heads, quantized, adapters)
