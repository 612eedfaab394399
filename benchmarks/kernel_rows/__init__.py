"""Owns what a row of benchmarks/kernels_gpu.py is. Each module beside this one lists builders of rows in ROWS."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where and how large rows are built. At size 1 as they are measured; less makes them small enough to be checked."""

    device: torch.device
    dtype: torch.dtype
    size: float = 1.0

    def scaled(self, count: int, least: int = 1) -> int:
        """A number of tokens or sequences, made smaller as the rows are."""
        return max(least, int(count * self.size))

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def integers(self, *values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One call of a kernel, the least that it must move and compute, and what torch has for the same.

    Rivals give what the call gives. Those in `compiled` are functions for torch.compile, which is how they are measured.
    """

    name: str
    call: Callable[[], torch.Tensor]
    bytes_moved: int
    flops: int = 0
    rivals: Mapping[str, Callable[[], torch.Tensor]] = dataclasses.field(default_factory=dict)
    compiled: Mapping[str, Callable[[], torch.Tensor]] = dataclasses.field(default_factory=dict)


def all_rows(place: Place, wanted: str = "") -> Iterator[Row]:
    """Builds one group of rows after the other, those whose function's name contains `wanted`."""
    for module in pkgutil.iter_modules(__path__):
        for build in importlib.import_module(f"{__name__}.{module.name}").ROWS:
            if wanted in build.__name__:
                yield from build(place)
