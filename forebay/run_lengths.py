"""Owns how prompts with media are written short: runs of one id, and rotary positions as runs of one step.

An image is thousands of times one placeholder, and its positions on each axis go on by the same step along every row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forebay.errors import InvalidRequest

MAX_TOKENS = 1 << 24  # of a prompt, before memory is taken for what counts claim


def shorten(values: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """values (n,) -> the value of each run and how long it is, both (runs,) int64."""
    numbers = np.asarray(values, np.int64)
    if not len(numbers):
        return numbers, numbers
    starts = np.concatenate(([0], np.flatnonzero(np.diff(numbers)) + 1))
    return numbers[starts], np.diff(np.concatenate((starts, [len(numbers)])))


def lengthen(values: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """The reverse; raises InvalidRequest for lists that differ in length, and for more than a prompt can have."""
    if len(values) != len(counts):
        raise InvalidRequest(f"there are {len(values)} runs and {len(counts)} lengths of runs")
    total = sum(counts)
    if total > MAX_TOKENS:
        raise InvalidRequest(f"runs of {total:,} values are more than a prompt can have")
    return np.repeat(np.asarray(values, np.int64), np.asarray(counts, np.int64))


def shorten_positions(axes: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """axes (A, n) -> runs of steps: from each position to the next, axis after axis, the first of all from 0."""
    return shorten(np.diff(np.asarray(axes, np.int64).reshape(-1), prepend=0))


def lengthen_positions(
    steps: Sequence[int], counts: Sequence[int], num_axes: int, num_tokens: int
) -> np.ndarray | None:
    """(A, n) int64; None without axes. Raises InvalidRequest for runs that are not of A x n positions."""
    if not num_axes:
        return None
    positions = lengthen(steps, counts).cumsum()
    if len(positions) != num_axes * num_tokens:
        raise InvalidRequest(f"{len(positions):,} positions are not {num_axes} for each of {num_tokens:,} tokens")
    return positions.reshape(num_axes, num_tokens)
