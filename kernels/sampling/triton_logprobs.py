"""Owns log-probabilities of chosen tokens and of the likeliest ones on a GPU, without sorting a row.

One program goes over a row: the sum of its exponentials, the rank of the chosen token, and the likeliest tokens, which it
finds as top-k does and writes in the order of their ids. A second launch puts those few in order. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels.sampling.triton_search import ALL, kept_of, load_scaled, search, to_key
from kernels.triton_runtime import Specialization, next_power_of_2, tl, triton

_BLOCK = 4096
_NUM_WARPS = 8
_ALL = tl.constexpr(ALL)


@triton.jit
def _logprobs(
    logits,
    token_ids,
    logprobs,
    ranks,
    found_ids,
    found,
    size,
    stride,
    num_top,
    BLOCK: tl.constexpr,
):
    """logits (N, V) float32, rows `stride` apart; found_ids int32 and found float32 (N, num_top), unordered. Grid: N."""
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    peak, total, least = (
        tl.full((), float("-inf"), tl.float32),
        tl.zeros((), tl.float32),
        tl.full((), float("inf"), tl.float32),
    )
    for first in range(0, size, BLOCK):
        x = load_scaled(row, first + tl.arange(0, BLOCK), size, 1.0)
        larger = tl.maximum(peak, tl.max(x, 0))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(peak - shift) + tl.sum(tl.exp(x - shift), 0)
        peak = larger
        least = tl.minimum(least, tl.min(x, 0))
    token_id = tl.load(token_ids + n)
    # A row without a token has none to look up; its place is filled, and nobody reads it.
    logit = tl.load(row + tl.where((token_id >= 0) & (token_id < size), token_id, 0))
    rank = tl.zeros((), tl.int32)
    for first in range(0, size, BLOCK):
        rank += tl.sum((load_scaled(row, first + tl.arange(0, BLOCK), size, 1.0) > logit).to(tl.int32), 0)
    log_total = peak + tl.log(total)
    tl.store(logprobs + n, logit - log_total)
    tl.store(ranks + n, (rank + 1).to(tl.int64))
    if num_top == 0:
        return

    low, ties = to_key(least).to(tl.int64), tl.zeros((), tl.int32) + _ALL
    num_all = tl.zeros((), tl.int32) + size
    if num_top < size:
        low, ties = search(row, size, 1.0, peak, low, num_all, tl.zeros((), tl.float32) + num_top, False, BLOCK)
    num_before, num_found = tl.zeros((), tl.int32), tl.zeros((), tl.int32)
    for first in range(0, size, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        x = load_scaled(row, ids, size, 1.0)
        kept, num_before = kept_of(to_key(x), low, ties, num_before)
        kept = (kept & (ids < size)).to(tl.int32)
        place = num_found + tl.cumsum(kept, 0) - kept
        at = n.to(tl.int64) * num_top + place
        writes = (kept != 0) & (place < num_top)
        tl.store(found_ids + at, ids, writes)
        tl.store(found + at, x - log_total, writes)
        num_found += tl.sum(kept, 0)


@triton.jit
def _order(found_ids, found, top_ids, top_logprobs, num_top, TOP: tl.constexpr):
    """(N, num_top) each: the likeliest first, of two alike the lower id. TOP is a power of two. Grid: N."""
    at = tl.program_id(0).to(tl.int64) * num_top
    lane = tl.arange(0, TOP)
    inside = lane < num_top
    value = tl.load(found + at + lane, inside, float("-inf"))
    token_id = tl.load(found_ids + at + lane, inside, 0)
    place = tl.zeros((TOP,), tl.int32)
    for other in range(num_top):  # they come in the order of their ids
        other_value = tl.load(found + at + other)
        place += ((other_value > value) | ((other_value == value) & (other < lane))).to(tl.int32)
    tl.store(top_ids + at + place, token_id.to(tl.int64), inside)
    tl.store(top_logprobs + at + place, value, inside)


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits (N, V), token_ids (N) -> logprobs (N), ranks (N), top_ids (N, n), top_logprobs (N, n)."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    num_rows, size = logits.shape
    logprobs, ranks = logits.new_empty(num_rows), logits.new_empty(num_rows, dtype=torch.int64)
    found, found_ids = (logits.new_empty((num_rows, num_top), dtype=dtype) for dtype in (torch.float32, torch.int32))
    top_logprobs, top_ids = torch.empty_like(found), logits.new_empty((num_rows, num_top), dtype=torch.int64)
    if num_rows:
        _logprobs[(num_rows,)](
            logits, token_ids, logprobs, ranks, found_ids, found, size, logits.stride(0), num_top,
            BLOCK=_BLOCK, num_warps=_NUM_WARPS,
        )  # fmt: skip
        if num_top:
            top = next_power_of_2(num_top)
            _order[(num_rows,)](
                found_ids, found, top_ids, top_logprobs, num_top, TOP=top, num_warps=1 if top <= 256 else 4
            )
    return logprobs, ranks, top_ids, top_logprobs


COMPILED = [
    Specialization(
        name="logprobs",
        kernel=_logprobs,
        types={"logits": "*fp32", "token_ids": "*i64", "logprobs": "*fp32", "ranks": "*i64", "found_ids": "*i32"}
        | {"found": "*fp32", "size": "i32", "stride": "i32", "num_top": "i32"},
        constants={"BLOCK": _BLOCK},
        aligned=("size", "stride"),
        num_warps=_NUM_WARPS,
    ),
    Specialization(
        name="order-32",
        kernel=_order,
        types={"found_ids": "*i32", "found": "*fp32", "top_ids": "*i64", "top_logprobs": "*fp32", "num_top": "i32"},
        constants={"TOP": 32},
        num_warps=1,
    ),
]
