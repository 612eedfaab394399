"""Owns the mode in which the bits of a row depend on the row alone: not on the rows beside it, nor on how many there are.

The public calls read it, so that no layer has to pass it on. Where an operation has several forms of which each is the
fastest for some number of rows, the mode keeps to one; where torch's libraries choose for us, they get one row at a time.
Attention and recurrences read a sequence's earlier tokens besides: these count as part of the row, however they were cut.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch

__all__ = ["batch_invariant", "elementwise", "is_on", "rows_as_sequences", "rowwise"]

_on = ContextVar("batch_invariant", default=False)


def is_on() -> bool:
    """Whether this thread computes in the mode."""
    return _on.get()


@contextlib.contextmanager
def batch_invariant(on: bool = True) -> Iterator[None]:
    """Everything inside is computed in the mode, or with False outside of it. Other threads have theirs."""
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


def rowwise(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """function(x), x (T, ..., D) -> (T, ...), or of one row x (D); in the mode of each row by itself.

    Each row is copied to memory of its own: libraries look at the alignment too.
    """
    if not _on.get() or not x.numel() or x.dim() < 2:
        return function(x)
    return torch.cat([function(row.clone()) for row in x.split(1)])


def elementwise(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The same for what maps each number by itself. On a GPU that depends on nothing else.

    On a CPU torch takes vectors of numbers, and the rest of a tensor one by one with another exponential function.
    """
    return rowwise(function, x) if x.is_cpu else function(x)


def rows_as_sequences(
    block_table: torch.Tensor, query_start: torch.Tensor, seq_lens: torch.Tensor, num_tokens: int, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The block table (T, M), query_start (T + 1) and seq_lens (T) of T sequences of one row each that see the same keys.

    block_table (R, M), or whatever else a sequence has a line of, query_start (R + 1) and seq_lens (R) are those of the
    batch. Nothing is read back from a GPU.
    """
    token = torch.arange(num_tokens + 1, dtype=query_start.dtype, device=query_start.device)
    of = torch.searchsorted(query_start[1:].contiguous(), token[:-1], right=True)  # (T): the sequence of each row
    lengths = seq_lens[of]
    if causal:
        lengths = lengths - (query_start[1:][of] - 1 - token[:-1])
    return block_table[of], token, lengths
