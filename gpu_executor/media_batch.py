"""Owns what media adds to a step's batch: rows of features, positions that are not indexes, prompts read as a whole."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from gpu_executor.batch import Features
from gpu_executor.encoder_cache import EncoderCache
from gpu_executor.scheduler import ScheduledSequence


def features_of(
    plan: SequenceOf[ScheduledSequence], query_start: np.ndarray, cache: EncoderCache, device: torch.device
) -> Features | None:
    """Rows of the step that stand for media, with their features out of the cache; None if there are none."""
    rows: list[np.ndarray] = []
    values: list[torch.Tensor] = []
    for part, first_row in zip(plan, query_start[:-1], strict=True):
        sequence = part.sequence
        start = sequence.num_computed_tokens
        for index in sorted(sequence.held_media):
            item = sequence.request.media[index]
            tokens, features = item.rows(start, start + part.num_tokens)
            if len(tokens):
                rows.append(tokens - start + first_row)
                values.append(cache[item.digest][torch.from_numpy(features).to(device)])
    if not rows:
        return None
    return Features(torch.from_numpy(np.concatenate(rows)).to(device), torch.cat(values))


def axes_of(plan: SequenceOf[ScheduledSequence], positions: np.ndarray, query_start: np.ndarray) -> np.ndarray | None:
    """positions (T,), the indexes of the step's tokens -> (axes, T) int64 where some request's are others; None else."""
    given = [part.sequence.request.positions for part in plan]
    num_axes = max((len(axes) for axes in given if axes is not None), default=0)
    if not num_axes:
        return None
    result = np.tile(positions, (num_axes, 1))
    for part, axes, first_row in zip(plan, given, query_start[:-1], strict=True):
        if axes is None:
            continue
        request, start = part.sequence.request, part.sequence.num_computed_tokens
        end = start + part.num_tokens
        inside = max(0, min(end, request.num_prompt_tokens) - start)  # tokens of the prompt
        result[:, first_row : first_row + inside] = axes[:, start : start + inside]
        result[:, first_row + inside : first_row + part.num_tokens] += request.position_delta
    return result


def whole_parts(plan: SequenceOf[ScheduledSequence]) -> tuple[int, ...]:
    """Which parts are of a prompt whose tokens all see each other."""
    return tuple(
        index
        for index, part in enumerate(plan)
        if part.sequence.request.prompt_is_whole
        and part.sequence.num_computed_tokens < part.sequence.request.num_prompt_tokens
    )
