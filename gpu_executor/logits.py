"""Owns what a request changes in its logits before temperature and filters."""

from __future__ import annotations

import torch

from gpu_executor.request import Sequence
from kernels.sampling import apply_penalties


def change_logits(logits: torch.Tensor, sequence: Sequence) -> None:
    """logits (V,) float32 of the sequence's next token, changed in place, in vLLM's order.

    Allowed ids, bad words, min_tokens, bias, penalties; none of them where the model itself says what comes first.
    """
    params = sequence.request.sampling
    if sequence.must_begin:
        logits.fill_(-torch.inf)
        logits[sequence.request.first_token_id] = 0.0
        return
    if params.allowed_token_ids:
        allowed = _ids(params.allowed_token_ids, logits)
        values = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = values
    if params.bad_words and (banned := _banned_by_bad_words(sequence)):
        logits[_ids(banned, logits)] = -torch.inf
    if sequence.num_output_tokens < params.min_tokens and params.stop_token_ids:
        logits[_ids(tuple(params.stop_token_ids), logits)] = -torch.inf
    if params.logit_bias:
        ids, values = zip(*params.logit_bias, strict=True)
        logits[_ids(ids, logits)] += torch.tensor(values, device=logits.device)
    if params.has_penalties:
        assert sequence.output_counts is not None
        counts = sequence.output_counts
        apply_penalties(
            logits,
            _ids(tuple(sequence.request.prompt_token_set), logits),
            _ids(tuple(counts), logits),
            torch.tensor(list(counts.values()), dtype=torch.float32, device=logits.device),
            params.presence_penalty,
            params.frequency_penalty,
            params.repetition_penalty,
        )


def _banned_by_bad_words(sequence: Sequence) -> tuple[int, ...]:
    """Last ids of the bad words whose other ids were just generated."""
    output = sequence.output_token_ids
    banned = []
    for word in sequence.request.sampling.bad_words:
        *beginning, last = word
        if len(beginning) <= len(output) and output[len(output) - len(beginning) :] == beginning:
            banned.append(last)
    return tuple(banned)


def _ids(ids: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.int64, device=logits.device)
