"""Owns the tower of Idefics3 (Laurençon et al., 2024): SigLIP over tiles, and neighbouring patches joined to a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from gpu_executor.models.towers.navit import Navit, NavitModel
from gpu_executor.models.towers.tower import Embed, TowerInput, normalized


@dataclasses.dataclass(frozen=True, slots=True)
class Idefics3Vision:
    """A transformer; scale_factor x scale_factor of its patches become one row of the text's width."""

    navit: Navit
    scale_factor: int
    out_size: int

    def build(self) -> Idefics3Tower:
        return Idefics3Tower(self)


class Idefics3Tower(nn.Module):
    """Items have `pixels` (tiles, 3, side, side)."""

    def __init__(self, spec: Idefics3Vision) -> None:
        super().__init__()
        self.spec, size = spec, spec.navit.vit.hidden_size
        self.vision = NavitModel(spec.navit)
        self.norm = spec.navit.vit.make_norm()
        self.projector = nn.Linear(size * spec.scale_factor**2, spec.out_size, bias=False)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        dtype = self.projector.weight.dtype
        return [self._encoded(normalized(item.tensors, dtype)) for item in items]

    def _encoded(self, tiles: torch.Tensor) -> torch.Tensor:
        """tiles (N, 3, side, side) -> (N rows, out_size)."""
        x = self.norm(self.vision(tiles))  # (N, patches, D)
        factor, side = self.spec.scale_factor, tiles.shape[-1] // self.spec.navit.patch_size
        cells = x.unflatten(1, (side // factor, factor, side // factor, factor)).transpose(2, 3)
        return self.projector(cells.flatten(3).flatten(0, 2))
