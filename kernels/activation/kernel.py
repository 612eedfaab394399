"""Owns the activations on a GPU: elementwise, or of the gate half of a row times its other half.

Computed in float32 and rounded where the reference rounds. Bound by memory: one read and one write. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels.triton_runtime import Specialization, tl, triton

_BLOCK = 1024


@triton.jit
def activate(x, bound, NAME: tl.constexpr):
    """The activation of float32 numbers; NAME as in reference.py, the bound for those that have one. NaN stays NaN."""
    if NAME == "silu":
        y = x / (1 + tl.exp(-x))
    elif NAME == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":  # (1 + tanh(u)) / 2 is the sigmoid of 2 u
        y = x / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif NAME == "relu":
        y = tl.where(x < 0, 0.0, x)
    elif NAME == "relu2":
        positive = tl.where(x < 0, 0.0, x)
        y = positive * positive
    else:
        tl.static_assert(NAME == "fatrelu", "no such activation")
        y = tl.where(x <= bound, 0.0, x)
    return y


@triton.jit
def gated(gate, up, bound, DTYPE: tl.constexpr, NAME: tl.constexpr):
    """act(gate) * up of float32 numbers that DTYPE can hold, rounded to it after each step as the reference is."""
    if NAME == "gegelu":
        gate = tl.where(gate > bound, bound, gate)
        up = tl.where(up > bound, bound, tl.where(up < -bound, -bound, up))
        gate, up = gate.to(DTYPE).to(tl.float32), up.to(DTYPE).to(tl.float32)
        steep = (1.702 * gate).to(DTYPE).to(tl.float32)
        share = (1 / (1 + tl.exp(-steep))).to(DTYPE).to(tl.float32)
        y = (gate * share).to(DTYPE).to(tl.float32) * (up + 1).to(DTYPE).to(tl.float32)
    else:
        y = activate(gate, bound, NAME).to(DTYPE).to(tl.float32) * up
    return y


@triton.jit
def _activation(x, y, size, stride, bound, GATED: tl.constexpr, NAME: tl.constexpr, BLOCK: tl.constexpr):
    """x (rows, size), or (rows, 2 size) when GATED, rows `stride` apart; y (rows, size) dense.

    Grid: rows times column blocks, in one dimension because only the first has no limit that matters.
    """
    num_blocks = tl.cdiv(size, BLOCK)
    column = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    row = (tl.program_id(0) // num_blocks).to(tl.int64)
    inside = column < size
    value = tl.load(x + row * stride + column, inside, 0.0)
    dtype = value.dtype
    if GATED:
        up = tl.load(x + row * stride + size + column, inside, 0.0).to(tl.float32)
        result = gated(value.to(tl.float32), up, bound, dtype, NAME)
    else:
        result = activate(value.to(tl.float32), bound, NAME)
    tl.store(y + row * size + column, result.to(dtype), inside)


def act(name: str, x: torch.Tensor, bound: float | None) -> torch.Tensor:
    """x (...) -> (...)."""
    x = x.contiguous()
    y = torch.empty_like(x)
    _launch(name, x, y, rows=1, size=x.numel(), stride=x.numel(), bound=bound, gated=False)
    return y


def act_and_mul(name: str, x: torch.Tensor, bound: float | None) -> torch.Tensor:
    """x (T, 2F) -> (T, F)."""
    if x.stride(1) != 1:
        x = x.contiguous()
    rows, size = x.shape[0], x.shape[1] // 2
    y = x.new_empty(rows, size)
    _launch(name, x, y, rows=rows, size=size, stride=x.stride(0), bound=bound, gated=True)
    return y


def _launch(
    name: str, x: torch.Tensor, y: torch.Tensor, *, rows: int, size: int, stride: int, bound: float | None, gated: bool
) -> None:
    if y.numel():
        _activation[(triton.cdiv(size, _BLOCK) * rows,)](
            x, y, size, stride, bound or 0.0, GATED=gated, NAME=name, BLOCK=_BLOCK, num_warps=4
        )


def _specialization(name: str, dtype: str, *, gated: bool) -> Specialization:
    return Specialization(
        name=f"{name}-{dtype}{'-gated' if gated else ''}",
        kernel=_activation,
        types={"x": f"*{dtype}", "y": f"*{dtype}", "size": "i32", "stride": "i32", "bound": "fp32"},
        constants={"GATED": gated, "NAME": name, "BLOCK": _BLOCK},
        aligned=("size", "stride"),
    )


COMPILED = [
    _specialization(name, dtype, gated=gated)
    for name, dtype, gated in [
        ("silu", "bf16", True), ("silu", "fp16", True), ("gelu", "bf16", True), ("gelu_tanh", "bf16", True),
        ("gegelu", "bf16", True), ("fatrelu", "bf16", True), ("relu2", "bf16", False), ("relu", "fp32", False),
        ("gelu", "bf16", False), ("gelu_tanh", "bf16", False),
    ]
]  # fmt: skip
