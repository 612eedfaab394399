"""Owns the step from logits to tokens: log-probabilities, changes to the logits, and the choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as SequenceOf

import torch

from gpu_executor.logits import change_logits
from gpu_executor.request import Sequence
from kernels.batch_invariance import rowwise
from kernels.sampling import SampleRow, sample_rows


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of the model's own distribution, before temperature, penalties and filters."""

    logprob: float
    rank: int  # 1 for the likeliest
    top_ids: list[int]
    top_logprobs: list[float]


@dataclasses.dataclass(frozen=True, slots=True)
class SampledToken:
    """`token_id` is None where the logits were not numbers, so that nothing can be chosen."""

    token_id: int | None
    logprobs: TokenLogprobs | None = None


def sample(logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[SampledToken]:
    """logits (N, V) float32, one row per sequence; changed in place. A row that is not finite spoils no other."""
    logprob_rows = [i for i, s in enumerate(sequences) if s.request.sampling.logprobs is not None]
    raw = _log_softmax(logits[logprob_rows]) if logprob_rows else None  # (N', V)
    for row, sequence in enumerate(sequences):
        if sequence.changes_logits:
            change_logits(logits[row], sequence)
    best_values, best_ids = logits.max(-1)
    token_ids: list[int | None] = best_ids.tolist()
    # A NaN anywhere in a row is its maximum; +inf would make every probability NaN.
    for row in (~torch.isfinite(best_values)).nonzero().flatten().tolist():
        token_ids[row] = None
    random_rows = [
        i for i, s in enumerate(sequences) if s.request.sampling.temperature > 0 and token_ids[i] is not None
    ]
    if random_rows:
        chosen = sample_rows(logits[random_rows], [_sample_row(sequences[i]) for i in random_rows])
        for row, token_id in zip(random_rows, chosen, strict=True):
            token_ids[row] = token_id
    logprobs: dict[int, TokenLogprobs] = {}
    if raw is not None:
        kept = [(i, row) for i, row in enumerate(logprob_rows) if token_ids[row] is not None]
        for i, row in kept:
            params = sequences[row].request.sampling
            logprobs[row] = _gather(raw[i], token_ids[row], params.logprobs or 0, params.logprob_token_ids)
    return [SampledToken(token_id, logprobs.get(row)) for row, token_id in enumerate(token_ids)]


def prompt_logprobs(logits: torch.Tensor, next_ids: SequenceOf[int], num_top: int) -> list[TokenLogprobs]:
    """logits (N, V) at prompt positions and the prompt token that follows each -> N entries."""
    raw = _log_softmax(logits)
    return [_gather(raw[i], token_id, num_top, ()) for i, token_id in enumerate(next_ids)]


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    """logits (N, V) -> (N, V)."""
    return rowwise(lambda rows: rows.log_softmax(-1), logits)


def _gather(raw: torch.Tensor, token_id: int, num_top: int, extra_ids: tuple[int, ...]) -> TokenLogprobs:
    """raw (V,): log-probabilities."""
    logprob = raw[token_id]
    rank = int((raw > logprob).sum()) + 1
    top_ids, top_logprobs = [], []
    if num_top:
        values, ids = raw.topk(min(num_top, len(raw)))
        top_ids, top_logprobs = ids.tolist(), values.tolist()
    if extra_ids:
        top_ids += extra_ids
        top_logprobs += raw[list(extra_ids)].tolist()
    return TokenLogprobs(float(logprob), rank, top_ids, top_logprobs)


def _sample_row(sequence: Sequence) -> SampleRow:
    params = sequence.request.sampling
    return SampleRow(
        params.temperature, params.top_k, params.top_p, params.min_p, params.seed, sequence.index, sequence.num_tokens
    )
