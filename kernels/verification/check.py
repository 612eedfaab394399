"""Owns the judgement of a case: is it close to the definition, the same twice, and the same in other company?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from kernels.batch_invariance import batch_invariant
from kernels.verification import Place, operations
from kernels.verification.case import Case, Outputs
from kernels.verification.closeness import MAX_ERROR, RMS_ERROR, errors


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a case. `failure` says what happened where a call raised, and the rest means nothing then."""

    operation: str
    shape: str
    dtype: torch.dtype
    error: float = 0.0  # the largest, relative to its row; of integers, how many are others
    allowed: float = 0.0
    close: bool = False
    repeats: bool = False  # the same bits twice
    invariant: bool = False  # the same bits, in the batch-invariant mode, in calls of fewer rows
    failure: str = ""

    @property
    def ok(self) -> bool:
        return self.close and self.repeats and self.invariant and not self.failure


@torch.inference_mode()
def check(operation: str, place: Place) -> Iterator[Finding]:
    """The findings of an operation's cases, one after the other."""
    for case in operations()[operation](place):
        try:
            yield _judged(operation, case, place.dtype)
        except Exception as error:  # a kernel that cannot run is a finding, and says nothing of the others
            yield Finding(operation, case.shape, place.dtype, failure=f"{type(error).__name__}: {error}")


def _judged(operation: str, case: Case, dtype: torch.dtype) -> Finding:
    actual, expected = case.call(), case.expected()
    error, allowed, close = 0.0, 0.0, True
    for mine, wanted in zip(actual, expected, strict=True):
        if mine.shape != wanted.shape or mine.dtype != wanted.dtype:
            raise ValueError(
                f"gives {tuple(mine.shape)} {mine.dtype}, where the definition gives {tuple(wanted.shape)} {wanted.dtype}"
            )
        if not mine.is_floating_point():
            wrong = int((mine != wanted).sum())
            error, close = max(error, float(wrong)), close and not wrong
            continue
        worst, rms = errors(mine, wanted)
        error, allowed = max(error, worst), max(allowed, MAX_ERROR[mine.dtype])
        close = close and worst <= MAX_ERROR[mine.dtype] and rms <= RMS_ERROR[mine.dtype]
    repeats = _same_bits(actual, case.call())
    with batch_invariant():
        invariant = _same_bits(case.call(), case.in_parts())
    return Finding(operation, case.shape, dtype, error, allowed, close, repeats, invariant)


def _same_bits(some: Outputs, others: Outputs) -> bool:
    """Whether both are the same numbers; NaN is none."""
    return all(torch.equal(mine, other) for mine, other in zip(some, others, strict=True))
