"""Owns the interface of towers: a media item's tensors in, rows that take the place of token embeddings out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

# Token ids (n,) int64 -> their embeddings (n, D), scaled as the decoder scales those of text.
Embed = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TowerInput:
    """One item, by the names that its processor gave: tensors on the model's device, in the dtypes in which they came."""

    modality: str
    tensors: Mapping[str, torch.Tensor]


class Tower(Protocol):
    """A torch module with its projector. Its parameters' names, after "tower.", are the canonical names of its weights."""

    def __call__(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Features (n, D) of each item, in the model's dtype; an item's rows do not depend on the other items."""


class TowerSpec(Protocol):
    """Facts of a tower: a frozen dataclass beside the module that it builds, hashable or compared by identity."""

    def build(self) -> torch.nn.Module:
        """The tower with parameters of undefined content; buffers that are no weights must be right."""


class TiledTowerSpec(TowerSpec, Protocol):
    """Facts of a tower that cross attention reads: each item gives max_tiles tiles of tile_rows rows.

    Those of the item's own tiles come first; behind them are tiles that stand empty.
    """

    @property
    def max_tiles(self) -> int:
        """Tiles of every item."""

    @property
    def tile_rows(self) -> int:
        """Rows of every tile."""

    def num_tiles(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """The item's own tiles; 0 where its tensors are not what the tower takes."""


def normalized(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, name: str = "pixels") -> torch.Tensor:
    """Pixels as the tower reads them: (..., C, H, W) in `dtype`.

    uint8 pixels come with `normalization` (1 + 2C) float32, a scale, C means and C deviations, and are scaled and normalized
    here in float32, in the order of operations of transformers' image processors: (pixels * scale - mean) / deviation.
    """
    pixels = tensors[name]
    if pixels.dtype != torch.uint8:
        return pixels.to(dtype)
    scale, rest = tensors["normalization"][0], tensors["normalization"][1:]
    mean, deviation = rest.view(2, -1, 1, 1)  # (C, 1, 1) each
    return ((pixels.float() * scale - mean) / deviation).to(dtype)
