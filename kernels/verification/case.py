"""Owns what a case of an operation is, and the cutting of its rows into parts that are computed in several calls."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import torch

Outputs = tuple[torch.Tensor, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One call, what it should give, and how else the same is computed. The three give as many tensors of the same shapes.

    None of them changes what it reads. `in_parts` computes the same rows in calls of fewer; sequences are cut into chunks.
    """

    shape: str
    call: Callable[[], Outputs]
    expected: Callable[[], Outputs]
    in_parts: Callable[[], Outputs]


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where cases run, and in which number format. The same numbers are drawn for every device."""

    device: torch.device
    dtype: torch.dtype

    def normal(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> torch.Tensor:
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.device, dtype or self.dtype)

    def below(self, end: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Integers from 0 to end - 1."""
        drawn = torch.randint(0, end, shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.device, dtype)

    def shuffled(self, count: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(1)).to(self.device, dtype)

    def integers(self, values: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.int32, device=self.device)


def of_rows(shape: str, num_rows: int, call: Callable[[slice], Outputs], expected: Callable[[], Outputs]) -> Case:
    """A case whose rows are independent: `call` computes some of them."""
    cuts = sorted({0, min(1, num_rows), min(4, num_rows), num_rows // 2, num_rows})
    return Case(
        shape,
        lambda: call(slice(0, num_rows)),
        expected,
        lambda: concatenated(call(slice(*ends)) for ends in itertools.pairwise(cuts)),
    )


def concatenated(parts: Iterable[Outputs]) -> Outputs:
    """The rows of all parts, output by output."""
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
