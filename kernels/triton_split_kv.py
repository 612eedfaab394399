"""Owns the division of long contexts among programs, where there are too few queries to fill a GPU, and the merge after.

As in Flash-Decoding (Dao et al., 2023): each split attends to its share of a sequence's keys, and a second, small kernel
weighs the results by their sums of weights. How many splits there are depends on shapes alone, never on a GPU's memory.
"""

from __future__ import annotations

import torch

from kernels import batch_invariance
from kernels.triton_runtime import Specialization, next_power_of_2, num_processors, tl, triton

_MAX_SPLITS = 32
_MIN_KEYS = 256  # of one split: fewer are read faster than two kernels start


def choose_num_splits(num_programs: int, max_keys: int, device: torch.device) -> int:
    """A power of two: as many as give each processor two programs, if sequences of max_keys keys are long enough.

    One where a row must not depend on its batch: what it adds up in which order would.
    """
    if batch_invariance.is_on():
        return 1
    wanted = min(2 * num_processors(device) // max(num_programs, 1), max_keys // _MIN_KEYS, _MAX_SPLITS)
    return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1


@triton.jit
def merge_splits_kernel(
    partial, partial_lse, out, DIM: tl.constexpr, BLOCK_D: tl.constexpr, NUM_SPLITS: tl.constexpr
):  # fmt: skip
    """partial (N, NUM_SPLITS, DIM) and partial_lse (N, NUM_SPLITS), float32, as store_rows left them -> out (N, DIM).

    Grid (N). out = sum_s 2^lse[s] partial[s] / sum_s 2^lse[s], in float32; zero where no split saw a key.
    """
    row = tl.program_id(0).to(tl.int64)
    splits, columns = tl.arange(0, NUM_SPLITS), tl.arange(0, BLOCK_D)
    lse = tl.load(partial_lse + row * NUM_SPLITS + splits)
    highest = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(highest == -float("inf"), 0.0, highest))
    total = tl.sum(weights, 0)
    rows = partial + (row * NUM_SPLITS + splits[:, None]) * DIM + columns[None]
    seen = (weights > 0)[:, None] & (columns < DIM)[None]
    result = tl.sum(tl.load(rows, mask=seen, other=0.0) * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + row * DIM + columns, result.to(out.dtype.element_ty), mask=columns < DIM)


def split_buffers(out: torch.Tensor, splits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """out (T, H, D) -> where splits leave their results (T, H, splits, D) and (T, H, splits); `out` itself if there is one."""
    if splits == 1:
        return out, out
    shape = (*out.shape[:2], splits)
    return (
        torch.empty((*shape, out.shape[2]), dtype=torch.float32, device=out.device),
        torch.empty(shape, dtype=torch.float32, device=out.device),
    )


def merge_splits(partial: torch.Tensor, partial_lse: torch.Tensor, out: torch.Tensor) -> None:
    """Writes out (T, H, D), dense, from what split_buffers gave."""
    dim, splits = out.shape[2], partial_lse.shape[2]
    merge_splits_kernel[out.shape[0] * out.shape[1],](
        partial, partial_lse, out, dim, next_power_of_2(dim), splits, num_warps=4
    )


def merge_specialization(dim: int) -> Specialization:
    """The merge of rows of this size, for a list of COMPILED."""
    return Specialization(
        name=f"merge-{dim}",
        kernel=merge_splits_kernel,
        types={"partial": "*fp32", "partial_lse": "*fp32", "out": "*bf16"},
        constants={"DIM": dim, "BLOCK_D": next_power_of_2(dim), "NUM_SPLITS": 16},
    )
