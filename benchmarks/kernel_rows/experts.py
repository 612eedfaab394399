"""Rows of mixtures of experts: routers, and the experts' products at decode and with many tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.kernel_rows import Place, Row
from kernels.moe_experts import moe_experts
from kernels.moe_routing import reference, route


def routers(place: Place) -> Iterator[Row]:
    options = {"score": "sigmoid", "num_groups": 8, "topk_groups": 4, "group_score": "top2", "scale": 2.5}
    for tokens in (1, 64, 8192):
        logits = place.normal(place.scaled(tokens), 256).float()
        yield Row(
            f"router of 8 in 256 experts T={tokens}",
            lambda logits=logits: route(logits, 8, **options)[0],
            logits.numel() * 4 + len(logits) * 8 * 12,
            compiled={
                "torch.compile": lambda logits=logits: reference.route(
                    logits, 8, **options, score_bias=None, renormalize=True
                )[0]
            },
        )


def experts(place: Place) -> Iterator[Row]:
    for tokens, num_experts, top_k, hidden_size, size in (
        (1, 128, 8, 2048, 768), (64, 128, 8, 2048, 768), (1, 8, 2, 4096, 14336), (64, 8, 2, 4096, 14336),
        (8192, 128, 8, 2048, 768), (8192, 8, 2, 4096, 14336),
    ):  # fmt: skip
        d, f = place.scaled(hidden_size, 64), place.scaled(size, 48)
        x = place.normal(place.scaled(tokens), d)
        gate_up, down = place.normal(num_experts, 2 * f, d) * d**-0.5, place.normal(num_experts, d, f) * f**-0.5
        weights, ids = place.normal(len(x), num_experts).float().softmax(1).topk(top_k)
        num_used = min(num_experts, ids.numel())
        operands = x, gate_up, down, weights, ids
        yield Row(
            f"experts T={tokens} {top_k} of {num_experts} D={hidden_size} F={size}",
            lambda operands=operands: moe_experts(*operands[:3], "silu", *operands[3:]),
            (num_used * 3 * d * f + 2 * x.numel()) * x.element_size(),
            6 * ids.numel() * d * f,
            {"each expert in full": lambda operands=operands: _each_in_full(*operands)} if tokens == 64 else {},
        )


def _each_in_full(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """All experts on all tokens, as plain torch can do it without asking who was chosen."""
    share = torch.zeros(len(x), len(gate_up), device=x.device).scatter_(1, ids, weights)  # (T, E)
    gate, up = (x @ gate_up.transpose(1, 2)).chunk(2, 2)  # (E, T, F)
    out = (F.silu(gate) * up) @ down.transpose(1, 2)  # (E, T, D)
    return torch.einsum("te,etd->td", share, out.float()).to(x.dtype)


ROWS = (routers, experts)
