"""Owns the causal convolution on a GPU: y[t, c] = silu(bias[c] + sum over taps of weight[c, w] x[t - (W - 1 - w), c]).

Where most sequences have a row or two, one program walks through the rows of a sequence and then moves its window on. Where
they have many, programs take blocks of rows, whichever sequence these are of, and a second launch moves the windows on. Both
serve any batch; which one runs depends on shapes alone. Sums are float32, rounded once. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels import batch_invariance
from kernels.triton_runtime import Specialization, tl, triton

_CHANNELS = 256  # of a program that walks or that moves windows
_TILE = (16, 128)  # rows and channels of one that takes blocks


@triton.jit
def _load_row(window, x, slot, x_row, offset, channel, end, x_stride, num_channels, begins, TAPS: tl.constexpr):
    """The row at `offset` of a sequence, counted from its first one here: of x, or of the window where negative.

    Channels end at `end`, and at 0 where there is nothing to read. All but `channel` may be one number or one for each row.
    """
    old_end = tl.where((offset < 0) & (begins == 0), end, 0)
    new_end = tl.where(offset >= 0, end, 0)
    old = tl.load(window + (slot * (TAPS - 1) + TAPS - 1 + offset) * num_channels + channel, channel < old_end, 0.0)
    new = tl.load(x + x_row * x_stride + channel, channel < new_end, 0.0)
    return old.to(tl.float32) + new.to(tl.float32)


@triton.jit
def _move_window(window, x, slot, first, n, begins, channel, x_stride, num_channels, TAPS: tl.constexpr):
    """Overwrites a sequence's window with its last TAPS - 1 rows. Row j takes what row n + j > j held, so it goes upwards."""
    inside = channel < num_channels
    for j in tl.static_range(TAPS - 1):
        offset = n + j - (TAPS - 1)
        row = _load_row(
            window, x, slot, first + offset, offset, channel, num_channels, x_stride, num_channels, begins, TAPS
        )
        tl.store(window + (slot * (TAPS - 1) + j) * num_channels + channel, row.to(window.dtype.element_ty), inside)


@triton.jit
def _walk(
    x,
    weight,
    bias,
    window,
    query_start,
    seq_lens,
    slots,
    out,
    num_channels,
    x_stride,
    HAS_BIAS: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """x (T, C) rows x_stride apart, weight (C, TAPS), window (N, TAPS - 1, C), out (T, C). Grid: (sequences, channel blocks)."""
    sequence = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < num_channels
    first = tl.load(query_start + sequence).to(tl.int64)
    n = (tl.load(query_start + sequence + 1) - first).to(tl.int32)
    if n == 0:
        return
    begins = (n == tl.load(seq_lens + sequence)).to(tl.int32)
    slot = tl.load(slots + sequence)
    for i in range(n):
        total = tl.zeros((CHANNELS,), tl.float32)
        if HAS_BIAS:
            total += tl.load(bias + channel, inside, 0.0).to(tl.float32)
        for tap in tl.static_range(TAPS):
            offset = i - (TAPS - 1 - tap)
            row = _load_row(
                window, x, slot, first + offset, offset, channel, num_channels, x_stride, num_channels, begins, TAPS
            )
            total += row * tl.load(weight + channel * TAPS + tap, inside, 0.0).to(tl.float32)
        total = total / (1 + tl.exp(-total))
        tl.store(out + (first + i) * num_channels + channel, total.to(out.dtype.element_ty), inside)
    tl.debug_barrier()  # no thread writes to the window while another may still read it
    _move_window(window, x, slot, first, n, begins, channel, x_stride, num_channels, TAPS)


@triton.jit
def _blocks(
    x,
    weight,
    bias,
    window,
    query_start,
    seq_lens,
    slots,
    out,
    num_sequences,
    num_halvings,
    num_channels,
    x_stride,
    HAS_BIAS: tl.constexpr,
    TAPS: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """As _walk, but leaves the windows as they are. num_halvings: log2 of the sequences, rounded up.

    Grid: (row blocks, channel blocks).
    """
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = token < tl.load(query_start + num_sequences)
    low, high = tl.zeros((ROWS,), tl.int32), tl.zeros((ROWS,), tl.int32) + num_sequences
    for _ in range(num_halvings):  # the last sequence that begins at or before a token is the one that has it
        middle = (low + high) // 2
        after = tl.load(query_start + middle) > token
        low, high = tl.where(after, low, middle), tl.where(after, middle, high)
    first, last = tl.load(query_start + low), tl.load(query_start + low + 1)
    begins = (last - first == tl.load(seq_lens + low)).to(tl.int32)[:, None]
    slot = tl.load(slots + low)[:, None]
    index = (token - first)[:, None]
    end = tl.where(exists, num_channels, 0)[:, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    inside = exists[:, None] & (channel < num_channels)
    token = token.to(tl.int64)[:, None]
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channel, channel < num_channels, 0.0).to(tl.float32)
    for tap in tl.static_range(TAPS):
        back = TAPS - 1 - tap
        row = _load_row(window, x, slot, token - back, index - back, channel, end, x_stride, num_channels, begins, TAPS)
        total += row * tl.load(weight + channel * TAPS + tap, channel < num_channels, 0.0).to(tl.float32)
    total = total / (1 + tl.exp(-total))
    tl.store(out + token * num_channels + channel, total.to(out.dtype.element_ty), inside)


@triton.jit
def _move_windows(
    x, window, query_start, seq_lens, slots, num_channels, x_stride, TAPS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Grid: (sequences, channel blocks)."""
    sequence = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.load(query_start + sequence).to(tl.int64)
    n = (tl.load(query_start + sequence + 1) - first).to(tl.int32)
    if n == 0:
        return
    begins = (n == tl.load(seq_lens + sequence)).to(tl.int32)
    _move_window(window, x, tl.load(slots + sequence), first, n, begins, channel, x_stride, num_channels, TAPS)


def causal_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    window: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Shapes as in the public call. Raises ValueError for a window that is not dense, which could not be written to."""
    if not window.is_contiguous():
        raise ValueError("causal_conv overwrites a window that is dense")
    num_tokens, num_channels = x.shape
    num_taps, num_sequences = weight.shape[1], len(seq_lens)
    out = x.new_empty(x.shape)
    if not out.numel() or not num_sequences:
        return out
    x = x if x.stride(1) == 1 else x.contiguous()
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    query_start, seq_lens, slots = query_start.contiguous(), seq_lens.contiguous(), slots.contiguous()
    operands = x, weight, bias, window, query_start, seq_lens, slots, out
    grid = num_sequences, triton.cdiv(num_channels, _CHANNELS)
    constants = {"HAS_BIAS": bias is not None, "TAPS": num_taps}
    if num_tokens <= 2 * num_sequences or batch_invariance.is_on():
        _walk[grid](*operands, num_channels, x.stride(0), **constants, CHANNELS=_CHANNELS, num_warps=2)
        return out
    rows, channels = _TILE
    _blocks[(triton.cdiv(num_tokens, rows), triton.cdiv(num_channels, channels))](
        *operands, num_sequences, (num_sequences - 1).bit_length(), num_channels, x.stride(0),
        **constants, ROWS=rows, CHANNELS=channels, num_warps=4,
    )  # fmt: skip
    if num_taps > 1:
        _move_windows[grid](
            x, window, query_start, seq_lens, slots, num_channels, x.stride(0),
            TAPS=num_taps, CHANNELS=_CHANNELS, num_warps=2,
        )  # fmt: skip
    return out


_RAGGED = {"query_start": "*i32", "seq_lens": "*i32", "slots": "*i64", "num_channels": "i32", "x_stride": "i32"}
_ALIGNED = ("num_channels", "x_stride")


def _operand_types(dtype: str) -> dict[str, str]:
    return {**dict.fromkeys(("x", "weight", "bias", "window", "out"), f"*{dtype}"), **_RAGGED}


COMPILED = [
    *(
        Specialization(
            name=f"walk-{dtype}", kernel=_walk, types=_operand_types(dtype),
            constants={"HAS_BIAS": True, "TAPS": 4, "CHANNELS": _CHANNELS}, aligned=_ALIGNED, num_warps=2,
        )
        for dtype in ("bf16", "fp16", "fp32")
    ),
    *(
        Specialization(
            name=f"blocks-{dtype}", kernel=_blocks,
            types=_operand_types(dtype) | {"num_sequences": "i32", "num_halvings": "i32"},
            constants={"HAS_BIAS": True, "TAPS": 4, "ROWS": _TILE[0], "CHANNELS": _TILE[1]}, aligned=_ALIGNED,
        )
        for dtype in ("bf16", "fp32")
    ),
    Specialization(
        name="move_windows-bf16", kernel=_move_windows, types={"x": "*bf16", "window": "*bf16", **_RAGGED},
        constants={"TAPS": 4, "CHANNELS": _CHANNELS}, aligned=_ALIGNED, num_warps=2,
    ),
]  # fmt: skip
