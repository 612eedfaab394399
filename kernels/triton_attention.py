"""Owns what the Triton kernels of attention share: which sequence a program serves, and the softmax that runs on.

Queries are taken in blocks of BLOCK_Q tokens of one sequence. Sequence r begins with block query_start[r] // BLOCK_Q + r,
so T // BLOCK_Q + R blocks are always enough, a number that the host knows without looking at the GPU; the few that are
left over find no token and end.
"""

from __future__ import annotations

from kernels.triton_runtime import tl, triton


@triton.jit
def sequence_of_block(block, query_start, num_seqs, BLOCK_Q: tl.constexpr):
    """The last sequence that begins at this block of queries or before."""
    low = block * 0
    high = num_seqs - 1 + low
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(query_start + middle) // BLOCK_Q + middle <= block:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def online_softmax(scores, scale, row_max, row_sum, MASKED: tl.constexpr):
    """One step over keys: scores (M, N), scale > 0 -> weights (M, N), row_max, row_sum (M), and what to multiply sums by.

    In powers of two: weights are 2^(scale scores - row_max). Where MASKED, a row may have seen nothing but -inf so far.
    """
    new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
    base = tl.where(new_max == -float("inf"), 0.0, new_max) if MASKED else new_max
    weights = tl.exp2(scores * scale - base[:, None])
    factor = tl.exp2(row_max - base)
    return weights, new_max, row_sum * factor + tl.sum(weights, 1), factor


@triton.jit
def store_rows(
    out, partial, partial_lse, acc, row_max, row_sum, rows, columns, row_exists, columns_exist, split, num_splits,
    OUT_DIM: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Writes sums acc (M, N) over the weights' sum: to rows of out (T H, OUT_DIM), or where SPLITS to what is merged later.

    partial (T H, num_splits, OUT_DIM) float32; partial_lse (T H, num_splits) holds log2 of the weights' sum, -inf where
    a split saw no key, whose row of partial is then undefined. A row that saw no key at all is zero.
    """
    seen = row_sum > 0
    result = acc / tl.where(seen, row_sum, 1.0)[:, None]
    exists = row_exists[:, None] & columns_exist[None]
    if not SPLITS:
        tl.store(out + rows[:, None] * OUT_DIM + columns[None], result.to(out.dtype.element_ty), mask=exists)
    else:
        places = rows * num_splits + split
        lse = tl.where(seen, row_max + tl.log2(tl.where(seen, row_sum, 1.0)), -float("inf"))
        tl.store(partial_lse + places, lse, mask=row_exists)
        tl.store(partial + places[:, None] * OUT_DIM + columns[None], result, mask=exists & seen[:, None])
