"""Owns the tower of LLaVA-NeXT and its kin: pictures in tiles whose patches form one grid, and frames of videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.llava import Projector
from gpu_executor.models.towers.tower import Embed, TowerInput, normalized


@dataclasses.dataclass(frozen=True, slots=True)
class FramePooling:
    """How the patches of a frame become fewer: cells of stride x stride to one patch, before the projector.

    "bilinear" is behind it: the grid is redrawn at half its size, rounded up, and the video ends in one more row.
    """

    kind: Literal["average", "max", "conv", "bilinear"]
    stride: int = 2


@dataclasses.dataclass(frozen=True, slots=True)
class LlavaNext:
    """Facts of the tower; `frames` is None where videos are not taken."""

    vision: ClipVit
    projector: Projector
    frames: FramePooling | None = None

    def build(self) -> LlavaNextTower:
        return LlavaNextTower(self)


class LlavaNextTower(nn.Module):
    """Pictures come as `pixels` (1 + tiles, C, S, S), the whole and its tiles, with the `layout` (8,) of the patches.

    `layout` is the rows and columns of tiles; the first row and column of patches that are kept, and those behind the last;
    the rows and columns that become of them. Videos are `pixels` (frames, C, S, S).
    """

    def __init__(self, facts: LlavaNext) -> None:
        super().__init__()
        self.facts, self.side = facts, facts.vision.side
        self.vision = facts.vision.build()
        self.projector = facts.projector.build()
        self.newline = nn.Parameter(torch.empty(facts.projector.output_size))
        self.pool = None
        if facts.frames is not None and facts.frames.kind == "conv":
            size, stride = facts.vision.output_size, facts.frames.stride
            self.pool = nn.Conv2d(size, size, stride, stride)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Features (n, D) of each item."""
        return [self._video(item) if item.modality == "video" else self._picture(item) for item in items]

    def _picture(self, item: TowerInput) -> torch.Tensor:
        """The rows of the whole, then those of the tiles' grid, each row of which ends in a newline."""
        tiles = self.projector(self.vision(normalized(item.tensors, self.newline.dtype)))  # (1 + tiles, patches, D)
        tile_rows, tile_columns, top, left, bottom, right, rows, columns = item.tensors["layout"].tolist()
        grid = tiles[1:].view(tile_rows, tile_columns, self.side, self.side, -1).transpose(1, 2)
        grid = grid.flatten(2, 3).flatten(0, 1)[top:bottom, left:right]  # (rows, columns, D)
        if grid.shape[:2] != (rows, columns):
            grid = _redrawn(grid.unsqueeze(0), rows, columns)[0]
        newlines = self.newline.expand(rows, 1, -1)
        return torch.cat([tiles[0], torch.cat([grid, newlines], 1).flatten(0, 1)])

    def _video(self, item: TowerInput) -> torch.Tensor:
        """The rows of each frame."""
        assert self.facts.frames is not None
        patches = self.vision(normalized(item.tensors, self.newline.dtype))  # (frames, patches, D)
        if self.facts.frames.kind != "bilinear":
            return self.projector(self._pooled(patches)).flatten(0, 1)
        grids = self.projector(patches).unflatten(1, (self.side, self.side))
        half = -(-self.side // 2)
        return torch.cat([_redrawn(grids, half, half).flatten(0, 2), self.newline.unsqueeze(0)])

    def _pooled(self, patches: torch.Tensor) -> torch.Tensor:
        """(frames, patches, D) -> (frames, fewer, D)."""
        assert self.facts.frames is not None
        grids = patches.transpose(1, 2).unflatten(2, (self.side, self.side))  # (frames, D, side, side)
        if self.pool is not None:
            grids = self.pool(grids)
        else:
            pool = F.avg_pool2d if self.facts.frames.kind == "average" else F.max_pool2d
            grids = pool(grids, self.facts.frames.stride)
        return grids.flatten(2).transpose(1, 2)


def _redrawn(grids: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """(N, ..., ..., D) -> (N, rows, columns, D), bilinearly, without smoothing before."""
    return F.interpolate(grids.permute(0, 3, 1, 2), (rows, columns), mode="bilinear").permute(0, 2, 3, 1)
