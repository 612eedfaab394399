"""Owns the selective scan on a GPU: s = softplus(dt + dt_bias), h = exp(s a) h + (s x) b, y = (h c + d x) silu(z).

Where most sequences have a row or two, a program walks through the rows of a sequence with the states of some channels in
registers. Where they have many, it takes them in chunks and each state's recurrence in parallel over a chunk. Both serve any
batch; which one runs depends on shapes alone. Float32 throughout, rounded once. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels import batch_invariance
from kernels.triton_runtime import Specialization, next_power_of_2, tl, triton

_WALK_CHANNELS = 64
_CHUNK = (32, 32)  # rows and channels


@triton.jit
def _softplus(x):
    """log(1 + e^x), to full precision also where e^x is far below 1 (Kahan's correction of the rounded 1 + e^x)."""
    power = tl.exp(x)
    above = 1 + power
    small = tl.where(above == 1, power, tl.log(above) * tl.div_rn(power, tl.where(above == 1, 1.0, above - 1)))
    return tl.where(x > 20, x, small)


@triton.jit
def _silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def _walk(
    x,
    dt,
    a,
    b,
    c,
    d,
    z,
    dt_bias,
    state,
    query_start,
    seq_lens,
    slots,
    out,
    num_channels,
    num_states,
    x_stride,
    dt_stride,
    b_stride,
    c_stride,
    z_stride,
    STATES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """x, dt, z (T, C) and b, c (T, N) with rows their strides apart, a (C, N), d, dt_bias (C), state (slots, N, C).

    Grid: (sequences, channel blocks).
    """
    sequence = tl.program_id(0)
    first = tl.load(query_start + sequence).to(tl.int64)
    n = (tl.load(query_start + sequence + 1) - first).to(tl.int32)
    if n == 0:
        return
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n_id = tl.arange(0, STATES)
    has_channel, has_state = channel < num_channels, n_id < num_states
    inside = has_state[:, None] & has_channel[None, :]
    rate = tl.load(a + channel[None, :] * num_states + n_id[:, None], inside, 0.0)
    skip, bias = tl.load(d + channel, has_channel, 0.0), tl.load(dt_bias + channel, has_channel, 0.0)
    old_end = tl.where(n == tl.load(seq_lens + sequence), 0, num_channels)  # a sequence that begins has no states yet
    state_at = state + (tl.load(slots + sequence) * num_states + n_id[:, None]) * num_channels + channel[None, :]
    h = tl.load(state_at, has_state[:, None] & (channel < old_end)[None, :], 0.0)
    for i in range(n):
        row = first + i
        step = _softplus(tl.load(dt + row * dt_stride + channel, has_channel, 0.0).to(tl.float32) + bias)
        value = tl.load(x + row * x_stride + channel, has_channel, 0.0).to(tl.float32)
        drive = tl.load(b + row * b_stride + n_id, has_state, 0.0).to(tl.float32)
        read = tl.load(c + row * c_stride + n_id, has_state, 0.0).to(tl.float32)
        h = tl.exp(step[None, :] * rate) * h + (step * value)[None, :] * drive[:, None]
        y = tl.sum(h * read[:, None], 0) + skip * value
        y *= _silu(tl.load(z + row * z_stride + channel, has_channel, 0.0).to(tl.float32))
        tl.store(out + row * num_channels + channel, y.to(out.dtype.element_ty), has_channel)
    tl.store(state_at, h, inside)


@triton.jit
def _compose(decay, value, later_decay, later_value):
    """Two steps h -> decay h + value, one after the other, as one."""
    return decay * later_decay, value * later_decay + later_value


@triton.jit
def _chunks(
    x,
    dt,
    a,
    b,
    c,
    d,
    z,
    dt_bias,
    state,
    query_start,
    seq_lens,
    slots,
    out,
    num_channels,
    num_states,
    x_stride,
    dt_stride,
    b_stride,
    c_stride,
    z_stride,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """As _walk. Grid: (sequences, channel blocks)."""
    sequence = tl.program_id(0)
    first = tl.load(query_start + sequence).to(tl.int64)
    n = (tl.load(query_start + sequence + 1) - first).to(tl.int32)
    if n == 0:
        return
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n_id = tl.arange(0, STATES)
    index = tl.arange(0, ROWS)
    has_channel = channel < num_channels
    skip, bias = tl.load(d + channel, has_channel, 0.0), tl.load(dt_bias + channel, has_channel, 0.0)
    old_end = tl.where(n == tl.load(seq_lens + sequence), 0, num_channels)  # a sequence that begins has no states yet
    state_at = state + (tl.load(slots + sequence) * num_states + n_id[:, None]) * num_channels + channel[None, :]
    of_state = (n_id < num_states)[:, None] & has_channel[None, :]
    h = tl.load(state_at, (n_id < num_states)[:, None] & (channel < old_end)[None, :], 0.0)
    for begin in range(0, n, ROWS):
        row = first + begin + index
        has_row = begin + index < n
        inside = has_row[:, None] & has_channel[None, :]
        step = tl.load(dt + row[:, None] * dt_stride + channel[None, :], inside, 0.0).to(tl.float32)
        step = tl.where(has_row[:, None], _softplus(step + bias[None, :]), 0.0)  # a step of 0 leaves the state as it is
        value = tl.load(x + row[:, None] * x_stride + channel[None, :], inside, 0.0).to(tl.float32)
        y = skip[None, :] * value
        value *= step
        for n_now in range(num_states):
            rate = tl.load(a + channel * num_states + n_now, has_channel, 0.0)
            drive = tl.load(b + row * b_stride + n_now, has_row, 0.0).to(tl.float32)
            read = tl.load(c + row * c_stride + n_now, has_row, 0.0).to(tl.float32)
            before = tl.sum(tl.where(n_id[:, None] == n_now, h, 0.0), 0)  # (CHANNELS)
            decay, added = tl.associative_scan((tl.exp(step * rate[None, :]), value * drive[:, None]), 0, _compose)
            states = decay * before[None, :] + added  # (ROWS, CHANNELS): after each row
            y += states * read[:, None]
            after = tl.sum(tl.where(index[:, None] == ROWS - 1, states, 0.0), 0)
            h = tl.where(n_id[:, None] == n_now, after[None, :], h)
        y *= _silu(tl.load(z + row[:, None] * z_stride + channel[None, :], inside, 0.0).to(tl.float32))
        tl.store(out + row[:, None] * num_channels + channel[None, :], y.to(out.dtype.element_ty), inside)
    tl.store(state_at, h, of_state)


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    d: torch.Tensor,
    z: torch.Tensor,
    dt_bias: torch.Tensor,
    state: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Shapes as in the public call. Raises ValueError for states that are not dense, which could not be written to."""
    if not state.is_contiguous():
        raise ValueError("selective_scan overwrites states that are dense")
    num_channels, num_states = a.shape
    out = x.new_empty(x.shape)
    if not out.numel() or not len(seq_lens):
        return out
    x, dt, b, c, z = (t if t.stride(1) == 1 else t.contiguous() for t in (x, dt, b, c, z))
    a, d, dt_bias, query_start, seq_lens, slots = (
        t.contiguous() for t in (a, d, dt_bias, query_start, seq_lens, slots)
    )
    arguments = (
        x, dt, a, b, c, d, z, dt_bias, state, query_start, seq_lens, slots, out, num_channels, num_states,
        x.stride(0), dt.stride(0), b.stride(0), c.stride(0), z.stride(0),
    )  # fmt: skip
    states = next_power_of_2(num_states)
    if len(x) <= 2 * len(seq_lens) or batch_invariance.is_on():  # its chunks begin where a part begins
        grid = len(seq_lens), triton.cdiv(num_channels, _WALK_CHANNELS)
        _walk[grid](*arguments, STATES=states, CHANNELS=_WALK_CHANNELS, num_warps=_walk_warps(states))
    else:
        rows, channels = _CHUNK
        grid = len(seq_lens), triton.cdiv(num_channels, channels)
        _chunks[grid](*arguments, STATES=states, ROWS=rows, CHANNELS=channels, num_warps=4)
    return out


def _walk_warps(states: int) -> int:
    """Each thread holds at most 32 states and as many rates."""
    return 2 if states <= 32 else 4 if states <= 64 else 8


def _specialization(kernel: object, dtype: str, num_states: int) -> Specialization:
    walks = kernel is _walk
    tile = {"CHANNELS": _WALK_CHANNELS} if walks else dict(zip(("ROWS", "CHANNELS"), _CHUNK, strict=True))
    strides = ("x_stride", "dt_stride", "b_stride", "c_stride", "z_stride")
    return Specialization(
        name=f"{'walk' if walks else 'chunks'}-N{num_states}-{dtype}",
        kernel=kernel,
        types={
            **dict.fromkeys(("x", "dt", "b", "c", "z", "out"), f"*{dtype}"),
            **dict.fromkeys(("a", "d", "dt_bias", "state"), "*fp32"),
            "query_start": "*i32", "seq_lens": "*i32", "slots": "*i64",
            **dict.fromkeys(("num_channels", "num_states", *strides), "i32"),
        },
        constants={"STATES": next_power_of_2(num_states), **tile},
        aligned=("num_channels", "num_states", *strides),
        num_warps=_walk_warps(num_states) if walks else 4,
        max_stack_bytes=0 if walks or dtype != "fp32" else 16,
    )  # fmt: skip


COMPILED = [
    _specialization(_walk, "bf16", 16), _specialization(_walk, "fp32", 16), _specialization(_walk, "bf16", 64),
    _specialization(_walk, "bf16", 128), _specialization(_chunks, "bf16", 16), _specialization(_chunks, "fp32", 16),
    _specialization(_chunks, "bf16", 128),
]  # fmt: skip
