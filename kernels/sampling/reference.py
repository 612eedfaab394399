"""Owns the definition of sampling: counter-based random numbers, filters, and the choice itself, in plain torch."""

from __future__ import annotations

import numpy as np
import torch

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_WIDTH = np.uint64(32)


def philox(key: int, c0: np.ndarray, c1: int, c2: int, c3: int = 0) -> np.ndarray:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    key: 64 bits. c0: (N,) counters; c1..c3 the counter's other words. Returns (N, 4) uint32, as `tl.philox` gives.
    """
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    x0, x1, x2, x3 = (np.broadcast_to(np.asarray(c, np.uint64), np.shape(c0)) for c in (c0, c1, c2, c3))
    for _ in range(10):
        p0, p1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (p1 >> _WIDTH) ^ x1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _WIDTH) ^ x3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack((x0, x1, x2, x3), -1).astype(np.uint32)


def uniform(words: np.ndarray) -> np.ndarray:
    """words (N,) uint32 -> (N,) float32 in (0, 1), both ends left out: 2^23 numbers, each of which float32 holds exactly."""
    return (words >> np.uint32(9)).astype(np.float32) * np.float32(2**-23) + np.float32(2**-24)


def gumbel_noise(token_ids: np.ndarray, seed: int, sequence_index: int, position: int) -> np.ndarray:
    """Gumbel(0, 1) noise of each token id (N,) -> (N,) float32: a function of its arguments alone.

    One Philox call serves four neighbouring ids: token t takes word t % 4 of counter (t // 4, position, sequence).
    """
    groups, inverse = np.unique(token_ids >> 2, return_inverse=True)
    words = philox(seed, groups, position, sequence_index)[inverse, token_ids & 3]
    return -np.log(-np.log(uniform(words)))


# Largest minus smallest value that gumbel_noise can give: a token further than this below the best can never win.
NOISE_RANGE = float(-np.log(-np.log(1 - 2**-24)) + np.log(-np.log(2**-24)))


def filter_logits(logits: torch.Tensor, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """logits (V,), divided by the temperature already -> (V,) with what is filtered out at -inf.

    min_p first, then the k likeliest, then of those the smallest set whose probabilities sum up to top_p. Of equally
    likely ones the lower ids come first.
    """
    if min_p > 0:
        logits = logits.masked_fill(logits < logits.max() + float(np.float32(np.log(min_p))), -torch.inf)
    if 0 < top_k < len(logits):
        values, ids = (ordered[:top_k] for ordered in logits.sort(descending=True, stable=True))
        logits = torch.full_like(logits, -torch.inf).scatter_(0, ids, values)
    if top_p < 1:
        values, ids = logits.sort(descending=True, stable=True)
        probs = values.double().softmax(0)
        kept = probs.cumsum(0) - probs < top_p  # what comes before a kept token does not reach top_p
        logits = torch.full_like(logits, -torch.inf).scatter_(0, ids[kept], values[kept])
    return logits


def sample(
    logits: torch.Tensor,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    sequence_index: int,
    position: int,
) -> int:
    """One token from logits (V,) float32, by the Gumbel-max trick; temperature 0 takes the likeliest."""
    if temperature == 0:
        return int(logits.argmax())
    filtered = filter_logits(logits / temperature, top_k, top_p, min_p)
    noise = gumbel_noise(np.arange(len(logits)), seed, sequence_index, position)
    return int((filtered + torch.from_numpy(noise)).argmax())


def apply_penalties(
    logits: torch.Tensor,
    prompt_ids: torch.Tensor,
    output_ids: torch.Tensor,
    output_counts: torch.Tensor,
    presence: float,
    frequency: float,
    repetition: float,
) -> None:
    """Changes logits (V,) in place, as vLLM does.

    prompt_ids (P,) and output_ids (O,) are distinct ids, output_counts (O,) how often each was generated.
    """
    if repetition != 1:
        seen = torch.cat((prompt_ids, output_ids)).unique()
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / repetition, values * repetition)
    logits[output_ids] -= presence + frequency * output_counts


def penalize_rows(
    logits: torch.Tensor,
    slots: torch.Tensor,
    prompt_seen: torch.Tensor,
    output_counts: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
    repetition: torch.Tensor,
) -> None:
    """Changes logits (N, V) in place as apply_penalties does, from tables of all sequences; shapes as in the public call."""
    ids = torch.arange(logits.shape[1], device=logits.device)
    rows = slots.long()
    counts = output_counts[rows]  # (N, V)
    in_prompt = (prompt_seen[rows][:, ids // 32] >> (ids % 32)) & 1
    repeated = torch.where(logits > 0, logits / repetition[:, None], logits * repetition[:, None])
    changed = torch.where((counts > 0) | (in_prompt != 0), repeated, logits)
    penalty = presence[:, None] + frequency[:, None] * counts
    logits.copy_(torch.where(counts > 0, changed - penalty, changed))


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits (N, V), token_ids (N) -> logprobs (N), ranks (N), top_ids (N, n), top_logprobs (N, n); a token of -1 is read as 0."""
    at = token_ids.clamp(min=0)[:, None]
    log_total = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(1, at)
    ranks = (logits > chosen).sum(-1) + 1
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    return (chosen - log_total)[:, 0], ranks, ids[:, :num_top], values[:, :num_top] - log_total
