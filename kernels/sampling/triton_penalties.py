"""Owns the penalties for tokens that were seen, of many rows at once, on a GPU; rows that ask for none are not read."""

from __future__ import annotations

import torch

from kernels.triton_runtime import Specialization, tl, triton

_BLOCK = 1024


@triton.jit
def _penalize(
    logits,
    slots,
    prompt_seen,
    output_counts,
    presences,
    frequencies,
    repetitions,
    size,
    stride,
    num_words,
    BLOCK: tl.constexpr,
):
    """logits (N, V) float32, rows `stride` apart; prompt_seen (slots, num_words), output_counts (slots, V) int32; (N) each.

    Grid: (N, column blocks).
    """
    n = tl.program_id(0)
    presence, frequency, repetition = tl.load(presences + n), tl.load(frequencies + n), tl.load(repetitions + n)
    if (presence == 0) & (frequency == 0) & (repetition == 1):
        return
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < size
    slot = tl.load(slots + n).to(tl.int64)
    at = logits + n.to(tl.int64) * stride + ids
    x = tl.load(at, inside, 0.0)
    count = tl.load(output_counts + slot * size + ids, inside, 0)
    in_prompt = (tl.load(prompt_seen + slot * num_words + ids // 32, inside, 0) >> (ids % 32)) & 1
    repeated = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    x = tl.where((count > 0) | (in_prompt != 0), repeated, x)
    x = tl.where(count > 0, x - (presence + frequency * count.to(tl.float32)), x)
    tl.store(at, x, inside)


def penalize_rows(
    logits: torch.Tensor,
    slots: torch.Tensor,
    prompt_seen: torch.Tensor,
    output_counts: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
    repetition: torch.Tensor,
) -> None:
    """Changes logits (N, V), which are dense along V, in place; shapes as in the public call."""
    num_rows, size = logits.shape
    if num_rows:
        _penalize[(num_rows, triton.cdiv(size, _BLOCK))](
            logits, slots, prompt_seen, output_counts, presence, frequency, repetition,
            size, logits.stride(0), prompt_seen.shape[1], BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip


COMPILED = [
    Specialization(
        name="penalize",
        kernel=_penalize,
        types={
            **dict.fromkeys(("logits", "presences", "frequencies", "repetitions"), "*fp32"),
            **dict.fromkeys(("slots", "prompt_seen", "output_counts"), "*i32"),
            **dict.fromkeys(("size", "stride", "num_words"), "i32"),
        },
        constants={"BLOCK": _BLOCK},
        aligned=("size", "stride"),
    )
]
