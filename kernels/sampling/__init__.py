"""Chooses the next tokens of many rows at once; see reference.py for the definition.

sample_rows answers with numbers and waits for them; the others leave everything on the device, for steps that wait for
nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from kernels.sampling import cpu, reference
from kernels.sampling.reference import apply_penalties
from kernels.sampling.rows import SampleBatch, SampleRow
from kernels.triton_path import use_triton

__all__ = [
    "SampleBatch",
    "SampleRow",
    "apply_penalties",
    "penalize_rows",
    "sample_rows",
    "sample_tokens",
    "token_logprobs",
]


def sample_rows(logits: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    """logits (N, V) float32, one SampleRow each -> the N chosen ids, each equal to what reference.sample gives."""
    if use_triton(logits):
        return sample_tokens(logits, SampleBatch.of(rows, logits.device)).tolist()
    return cpu.sample_rows(logits, rows)


def sample_tokens(logits: torch.Tensor, batch: SampleBatch) -> torch.Tensor:
    """logits (N, V) float32 -> the N chosen ids, int64, as reference.sample gives them; -1 for a row that is not finite.

    On a GPU nothing is read back, and how long a row takes does not depend on the others.
    """
    columns = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    _check_rows(logits, *columns)
    if use_triton(logits):
        from kernels.sampling import kernel

        return kernel.sample_tokens(logits, *columns)
    best = logits.max(-1).values
    chosen = [
        reference.sample(logits[i], t, k, p, float(np.exp(low)), seed % 2**64, index, position) if finite else -1
        for i, (finite, t, k, p, low, seed, index, position) in enumerate(
            zip(torch.isfinite(best).tolist(), *(column.tolist() for column in columns), strict=True)
        )
    ]
    return torch.tensor(chosen, dtype=torch.int64, device=logits.device)


def penalize_rows(
    logits: torch.Tensor,
    slots: torch.Tensor,
    prompt_seen: torch.Tensor,
    output_counts: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
    repetition: torch.Tensor,
) -> None:
    """Changes logits (N, V) float32, dense along V, in place as apply_penalties does, from tables of all sequences.

    slots (N) int32 names each row's line in prompt_seen (slots, ceil(V / 32)) int32, a bit for each token, lowest first, and
    in output_counts (slots, V) int32. presence, frequency, repetition (N) float32: 0, 0 and 1 leave a row as it is.
    """
    _check_rows(logits, slots, presence, frequency, repetition)
    num_tokens = logits.shape[1]
    if prompt_seen.shape[1:] != ((num_tokens + 31) // 32,) or output_counts.shape != (len(prompt_seen), num_tokens):
        raise ValueError(
            f"penalties of {num_tokens} tokens take prompt_seen (S, {(num_tokens + 31) // 32}) and output_counts "
            f"(S, {num_tokens}), got {tuple(prompt_seen.shape)} and {tuple(output_counts.shape)}"
        )
    path = reference
    if use_triton(logits):
        from kernels.sampling import kernel as path
    path.penalize_rows(logits, slots, prompt_seen, output_counts, presence, frequency, repetition)


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits (N, V) float32, token_ids (N) int64 -> of each row's token its log-probability (N) float32 and rank (N) int64, 1
    for the likeliest; and ids (N, num_top) int64 and log-probabilities of the likeliest tokens, of equal ones the lower id first.
    """
    _check_rows(logits, token_ids)
    if not 0 <= num_top <= logits.shape[1]:
        raise ValueError(f"there are {logits.shape[1]} tokens, not {num_top}")
    path = reference
    if use_triton(logits):
        from kernels.sampling import kernel as path
    return path.token_logprobs(logits, token_ids, num_top)


def _check_rows(logits: torch.Tensor, *columns: torch.Tensor) -> None:
    if (
        logits.dim() != 2
        or logits.dtype != torch.float32
        or any(column.shape != logits.shape[:1] for column in columns)
    ):
        raise ValueError(
            f"sampling takes logits (N, V) float32 and tensors (N), got {logits.dtype} "
            f"{[tuple(t.shape) for t in (logits, *columns)]}"
        )
