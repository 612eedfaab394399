"""Owns the tower of Llama 3.2 Vision (Dubey et al., 2024): tiles of a picture that see each other, in two stacks of layers.

A patch is padding where its tile stands empty, or where it fills a tile up to a multiple of eight. As in the reference, such
patches are kept apart from each other alone: all others see them, so that they are computed as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.tower import Embed, TowerInput, normalized
from gpu_executor.models.towers.vit_layers import VitLayers, VitStack

_MULTIPLE = 8  # of which a tile's patches are


@dataclasses.dataclass(frozen=True, slots=True)
class MllamaVision:
    """Facts of the tower. What follows the layers in `outputs`, number by number, is joined to what the last layer gives."""

    vit: VitLayers
    global_vit: VitLayers
    image_size: int  # of a tile
    patch_size: int
    max_tiles: int
    num_arrangements: int  # of tiles
    outputs: tuple[int, ...]
    out_size: int
    num_channels: int = 3

    @property
    def tile_rows(self) -> int:
        """Patches of a tile, and the one that stands for its class."""
        return (self.image_size // self.patch_size) ** 2 + 1

    def num_tiles(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """Those of an item's `pixels`; its arrangement is looked at as well, because on a GPU a wrong index harms everyone."""
        pixels, arrangement = tensors.get("pixels"), tensors.get("aspect_ratio_id")
        if pixels is None or arrangement is None or arrangement.numel() != 1:
            return 0
        tile = (self.num_channels, self.image_size, self.image_size)
        fits = tuple(pixels.shape[1:]) == tile and len(pixels) <= self.max_tiles
        return len(pixels) if fits and 1 <= arrangement.item() <= self.num_arrangements else 0

    def build(self) -> MllamaTower:
        return MllamaTower(self)


class MllamaTower(nn.Module):
    """Items have `pixels` (tiles, C, H, W) and `aspect_ratio_id` (1), the number of their tiles' arrangement from 1."""

    def __init__(self, facts: MllamaVision) -> None:
        super().__init__()
        self.facts, size = facts, facts.vit.hidden_size
        self.patch = nn.Conv2d(facts.num_channels, size, facts.patch_size, facts.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(size))
        num_rows, tiles = facts.num_arrangements + 1, facts.max_tiles
        self.tiles = _Gated(num_rows, tiles * size)
        self.positions = nn.Parameter(torch.empty(facts.tile_rows, size))
        self.tile_positions = _Gated(num_rows, tiles * facts.tile_rows * size)
        self.pre_norm, self.post_norm = facts.vit.make_norm(), facts.vit.make_norm()
        self.vit, self.global_vit = VitStack(facts.vit), VitStack(facts.global_vit)
        self.global_tiles = _Gated(num_rows, tiles * size)
        self.projector = nn.Linear(size * (1 + len(facts.outputs)), facts.out_size)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Features (max_tiles * tile_rows, D) of each item."""
        return [self._encoded(item) for item in items]

    def _encoded(self, item: TowerInput) -> torch.Tensor:
        facts, pixels = self.facts, normalized(item.tensors, self.positions.dtype)
        arrangement = item.tensors["aspect_ratio_id"].long().view(1)
        num_tiles, tiles = len(pixels), facts.max_tiles
        pixels = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, tiles - num_tiles))
        x = self.patch(pixels).flatten(2).transpose(1, 2)  # (tiles, patches, size)
        x = x + self.tiles(arrangement).view(tiles, 1, -1)
        x = torch.cat([self.class_embedding.expand(tiles, 1, -1), x], 1)  # (tiles, tile_rows, size)
        x = x + (1 - self.tile_positions.gate) * self.positions
        x = x + self.tile_positions(arrangement).view(x.shape)
        padding = -facts.tile_rows % _MULTIPLE
        x = F.pad(self.pre_norm(x), (0, 0, 0, padding))  # (tiles, rows, size)
        seen, form = self._seen(num_tiles, padding, x.device), x.shape

        x = x.flatten(0, 1)[None]
        outputs = []
        for layer in self.vit.layers:
            x = layer(x, seen=seen)
            outputs.append(x)
        x = self.post_norm(x).view(form) + self.global_tiles(arrangement).view(tiles, 1, -1)
        x = self.global_vit(x.flatten(0, 1)[None], seen=seen)
        taken = torch.stack([outputs[index] for index in facts.outputs], -1).flatten(2)  # (1, tiles rows, size n)
        x = torch.cat([x, taken], -1).view(*form[:2], -1)[:, : facts.tile_rows]
        return self.projector(x).flatten(0, 1)

    def _seen(self, num_tiles: int, padding: int, device: torch.device) -> torch.Tensor:
        """(1, L, L): which patches (columns) have a part in which."""
        is_padding = torch.ones(self.facts.max_tiles, self.facts.tile_rows + padding, dtype=torch.bool, device=device)
        is_padding[:num_tiles, : self.facts.tile_rows] = False
        is_padding = is_padding.flatten()
        return ~(is_padding[:, None] & is_padding)[None]


class _Gated(nn.Module):
    """A table whose rows are scaled by one number."""

    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.table, self.gate = nn.Parameter(torch.empty(num_rows, size)), nn.Parameter(torch.empty(1))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        """index (1,) -> (1, size)."""
        return self.gate * self.table[index]
