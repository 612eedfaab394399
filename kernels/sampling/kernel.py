"""Owns the choice of tokens on a GPU: one program takes one row of logits, filters it and draws from it, unsorted.

The choice is that of reference.sample: the noise comes from the same counters, so that a token depends on its row, its seed,
its sequence and its position alone; numpy's logarithms and a GPU's may differ in their last bit. Passes over a row: one for a
greedy token, two without filters, about ten more for top-k and for top-p each. Nothing is read back. Not yet run on a GPU.
"""

from __future__ import annotations

import torch

from kernels.sampling import triton_logprobs, triton_penalties
from kernels.sampling.triton_search import ALL, count_and_mass, from_key, kept_of, load_scaled, search, to_key
from kernels.triton_runtime import Specialization, tl, triton

_BLOCK = 4096
_NUM_WARPS = 8
_ALL = tl.constexpr(ALL)

penalize_rows = triton_penalties.penalize_rows
token_logprobs = triton_logprobs.token_logprobs


@triton.jit
def _gumbel_noise(first_id, seed, sequence_index, position, BLOCK: tl.constexpr):
    """Noise of BLOCK tokens from first_id on, a multiple of 4: one call of Philox serves four of them."""
    counter = (first_id // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    zero = counter * 0
    words = tl.philox(seed, counter, zero + position.to(tl.uint32), zero + sequence_index.to(tl.uint32), zero)
    even, odd = tl.join(words[0], words[2]), tl.join(words[1], words[3])  # (BLOCK / 4, 2)
    word = tl.reshape(tl.join(even, odd), (BLOCK,))
    uniform = (word >> 9).to(tl.float32) * (1.0 / 8388608) + (1.0 / 16777216)
    return -tl.log(-tl.log(uniform))


@triton.jit
def _sample(
    logits,
    temperatures,
    top_ks,
    top_ps,
    log_min_ps,
    seeds,
    sequence_indices,
    positions,
    token_ids,
    size,
    stride,
    BLOCK: tl.constexpr,
):
    """logits (N, V) float32, rows `stride` apart; the others (N). token_ids (N) int64: -1 where a row has no numbers. Grid: N."""
    n = tl.program_id(0)
    row = logits + n.to(tl.int64) * stride
    best, best_id, least = (
        tl.full((), float("-inf"), tl.float32),
        tl.zeros((), tl.int32),
        tl.full((), float("inf"), tl.float32),
    )
    num_nan = tl.zeros((), tl.int32)
    for first in range(0, size, BLOCK):
        ids = first + tl.arange(0, BLOCK)
        x = tl.load(row + ids, ids < size, float("-inf"))
        num_nan += tl.sum((x != x).to(tl.int32), 0)
        x = tl.where(x == x, x, float("-inf"))
        largest, at = tl.max(x, 0), tl.argmax(x, 0)
        best_id = tl.where(largest > best, first + at, best_id)
        best = tl.maximum(best, largest)
        least = tl.minimum(least, tl.min(tl.where(x > float("-inf"), x, float("inf")), 0))
    temperature = tl.load(temperatures + n)
    finite = (num_nan == 0) & (best < float("inf")) & (best > float("-inf"))
    if (temperature <= 0) | (finite == 0):
        tl.store(token_ids + n, tl.where(finite, best_id, -1).to(tl.int64))
        return

    peak = tl.div_rn(best, temperature)
    floor = tl.maximum(tl.div_rn(least, temperature), peak + tl.load(log_min_ps + n))
    low, ties = to_key(floor).to(tl.int64), tl.zeros((), tl.int32) + _ALL
    top_k, top_p = tl.load(top_ks + n), tl.load(top_ps + n)
    if ((top_k > 0) & (top_k < size)) | (top_p < 1):
        count, mass = count_and_mass(row, size, temperature, peak, low.to(tl.int32), BLOCK)
        if (top_k > 0) & (top_k < count):
            low, ties = search(row, size, temperature, peak, low, count, top_k.to(tl.float32), False, BLOCK)
            count = top_k
            if top_p < 1:
                limited = ties < _ALL
                above = tl.where(limited, low + 1, low).to(tl.int32)
                _, mass = count_and_mass(row, size, temperature, peak, above, BLOCK)
                each = tl.exp(from_key(low.to(tl.int32)) - peak)
                mass += tl.where(limited, ties, 0).to(tl.float32) * each
        if top_p < 1:
            edge, edge_ties = low, ties
            low, ties = search(row, size, temperature, peak, low, count, top_p * mass, True, BLOCK)
            # Where it stops at the edge of top_k, no more of those that tie there are left than top_k took.
            ties = tl.where((low == edge) & (ties == _ALL), edge_ties, ties)

    best, num_before = tl.full((), float("-inf"), tl.float32), tl.zeros((), tl.int32)
    for first in range(0, size, BLOCK):
        x = load_scaled(row, first + tl.arange(0, BLOCK), size, temperature)
        kept, num_before = kept_of(to_key(x), low, ties, num_before)
        if tl.max(kept.to(tl.int32), 0) > 0:
            noise = _gumbel_noise(
                first, tl.load(seeds + n), tl.load(sequence_indices + n), tl.load(positions + n), BLOCK
            )
            x = tl.where(kept, x + noise, float("-inf"))
            largest, at = tl.max(x, 0), tl.argmax(x, 0)
            best_id = tl.where(largest > best, first + at, best_id)
            best = tl.maximum(best, largest)
    tl.store(token_ids + n, best_id.to(tl.int64))


def sample_tokens(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    log_min_p: torch.Tensor,
    seed: torch.Tensor,
    sequence_index: torch.Tensor,
    position: torch.Tensor,
) -> torch.Tensor:
    """logits (N, V), the others (N) -> token ids (N) int64."""
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    token_ids = logits.new_empty(len(logits), dtype=torch.int64)
    if len(logits):
        _sample[(len(logits),)](
            logits, temperature, top_k, top_p, log_min_p, seed, sequence_index, position, token_ids,
            logits.shape[1], logits.stride(0), BLOCK=_BLOCK, num_warps=_NUM_WARPS,
        )  # fmt: skip
    return token_ids


COMPILED = [
    Specialization(
        name="sample",
        kernel=_sample,
        types={
            **dict.fromkeys(("logits", "temperatures", "top_ps", "log_min_ps"), "*fp32"),
            **dict.fromkeys(("top_ks", "sequence_indices", "positions"), "*i32"),
            "seeds": "*i64", "token_ids": "*i64", "size": "i32", "stride": "i32",
        },
        constants={"BLOCK": _BLOCK},
        aligned=("size", "stride"),
        num_warps=_NUM_WARPS,
        max_stack_bytes=32,
    ),
    *triton_logprobs.COMPILED,
    *triton_penalties.COMPILED,
]  # fmt: skip
