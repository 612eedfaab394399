"""Owns how rows of logits are sampled: one by one on the host, or all of them as tensors on the device."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch


@dataclasses.dataclass(frozen=True, slots=True)
class SampleRow:
    """How one row is sampled; temperature > 0."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    sequence_index: int
    position: int


@dataclasses.dataclass(frozen=True, slots=True)
class SampleBatch:
    """How N rows are sampled, as tensors (N) where the logits are."""

    temperature: torch.Tensor  # float32; 0 takes the likeliest
    top_k: torch.Tensor  # int32; 0 for all
    top_p: torch.Tensor  # float32; 1 for all
    log_min_p: torch.Tensor  # float32, the natural logarithm; -inf for all
    seed: torch.Tensor  # int64, the bits of an unsigned one
    sequence_index: torch.Tensor  # int32
    position: torch.Tensor  # int32

    @classmethod
    def of(cls, rows: list[SampleRow], device: torch.device) -> SampleBatch:
        """Builds it on the host and copies it."""
        with np.errstate(divide="ignore"):
            log_min_p = np.log(np.array([row.min_p for row in rows])).astype(np.float32)
        return cls(
            *(
                torch.from_numpy(column).to(device, non_blocking=True)
                for column in (
                    np.array([row.temperature for row in rows], np.float32),
                    np.array([row.top_k for row in rows], np.int32),
                    np.array([row.top_p for row in rows], np.float32),
                    log_min_p,
                    np.array([row.seed for row in rows], np.uint64).view(np.int64),
                    np.array([row.sequence_index for row in rows], np.int32),
                    np.array([row.position for row in rows], np.int32),
                )
            )
        )
