"""Owns the choice of tokens on the CPU: the likeliest candidates of each row, and all of its tokens only where it takes them."""

from __future__ import annotations

import numpy as np
import torch

from kernels.batch_invariance import rowwise
from kernels.sampling.reference import NOISE_RANGE, gumbel_noise
from kernels.sampling.rows import SampleRow

_NUM_CANDIDATES = 512  # likeliest tokens that are looked at before a full sort is paid for


def sample_rows(logits: torch.Tensor, rows: list[SampleRow]) -> list[int]:
    """logits (N, V) float32, one SampleRow each -> the N chosen ids."""
    num_tokens = logits.shape[1]
    values, ids = logits.topk(min(_NUM_CANDIDATES, num_tokens), dim=-1)  # (N, C), best first
    log_totals = [0.0] * len(rows)
    if any(row.top_p < 1 for row in rows):
        temperatures = torch.tensor([row.temperature for row in rows], device=logits.device)
        log_totals = rowwise(lambda x: torch.logsumexp(x, dim=-1), logits / temperatures[:, None]).tolist()
    values_np, ids_np = values.cpu().numpy(), ids.cpu().numpy()
    chosen = []
    for i, row in enumerate(rows):
        scaled, candidates = values_np[i] / np.float32(row.temperature), ids_np[i]
        order = np.lexsort((candidates, -scaled))  # of equally likely ones, topk gives any first
        scaled, candidates = scaled[order], candidates[order]
        everything = len(scaled) == num_tokens
        kept = _num_kept(scaled, row, log_totals[i], everything=everything)
        if kept is None or (not everything and scaled[kept - 1] == scaled[-1]):  # which of those alike are candidates?
            all_values, all_ids = logits[i].sort(descending=True, stable=True)
            scaled, candidates = all_values.cpu().numpy() / np.float32(row.temperature), all_ids.cpu().numpy()
            kept = _num_kept(scaled, row, log_totals[i], everything=True)
        noise = gumbel_noise(candidates[:kept], row.seed, row.sequence_index, row.position)
        chosen.append(int(candidates[int(np.argmax(scaled[:kept] + noise))]))
    return chosen


def _num_kept(scaled: np.ndarray, row: SampleRow, log_total: float, *, everything: bool) -> int | None:
    """How many leading candidates can be chosen; None if tokens that are not among the candidates could be too.

    scaled (C,): logits over temperature, best first; log_total: their logsumexp over the whole vocabulary.
    """
    kept, complete = len(scaled), everything
    if row.min_p > 0:
        above = int(np.count_nonzero(scaled >= scaled[0] + np.float32(np.log(row.min_p))))
        kept, complete = above, complete or above < len(scaled)
    if 0 < row.top_k <= kept:
        kept, complete = row.top_k, True
    if row.top_p < 1:
        if row.top_k and not complete:
            return None  # top_p counts within the top_k tokens, more than the candidates are
        shift = float(scaled[0])
        probs = np.exp(scaled[:kept].astype(np.float64) - shift)
        probs /= probs.sum() if complete else np.exp(log_total - shift)
        below = int(np.count_nonzero(np.cumsum(probs) - probs < row.top_p))
        return max(1, below) if complete or below < kept else None
    # Without filters, a token this far below the best cannot win whatever its noise.
    near = int(np.count_nonzero(scaled[:kept] >= scaled[0] - np.float32(NOISE_RANGE)))
    return near if complete or near < kept else None
