"""Owns the vision tower of Qwen2-VL (Wang et al., 2024): a ViT with rotary places in two axes, over patches of frame pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from gpu_executor.models.towers.tower import Embed, TowerInput, normalized
from gpu_executor.models.towers.vit_layers import Rotate, VitLayers, VitStack

_THETA = 10000.0


@dataclasses.dataclass(frozen=True, slots=True)
class Qwen2VLVision:
    """A ViT; merge_size x merge_size of its patches become one row of out_size, the text's width."""

    vit: VitLayers
    out_size: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int

    def build(self) -> Qwen2VLTower:
        return Qwen2VLTower(self)


class Qwen2VLTower(nn.Module):
    """Patches go in the order of merged cells, so that each cell's patches lie side by side."""

    def __init__(self, spec: Qwen2VLVision) -> None:
        super().__init__()
        self.spec = spec
        size, merged_size = spec.vit.hidden_size, spec.vit.hidden_size * spec.merge_size**2
        self.patches = nn.Linear(3 * spec.temporal_patch_size * spec.patch_size**2, size, bias=False)
        self.vit = VitStack(spec.vit)
        self.norm = spec.vit.make_norm()
        self.merger1, self.merger2 = nn.Linear(merged_size, merged_size), nn.Linear(merged_size, spec.out_size)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        dtype = self.patches.weight.dtype
        return [self._encoded(normalized(item.tensors, dtype)) for item in items]

    def _encoded(self, frames: torch.Tensor) -> torch.Tensor:
        """frames (F, 3, H, W) -> (cells of all frame pairs, out_size); a frame without a partner is its own."""
        spec = self.spec
        if missing := -len(frames) % spec.temporal_patch_size:
            frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
        rows, columns = (side // spec.patch_size for side in frames.shape[2:])
        head_dim = spec.vit.hidden_size // spec.vit.num_heads
        rotate = _rotation(rows, columns, spec.merge_size, head_dim, frames.device)
        x = self.norm(self.vit(self.patches(self._patched(frames)), rotate))  # (T, rows columns, D)
        cells = x.view(-1, self.merger1.in_features)
        return self.merger2(functional.gelu(self.merger1(cells)))

    def _patched(self, frames: torch.Tensor) -> torch.Tensor:
        """(F, 3, H, W) -> (F / temporal_patch_size, patches, numbers of a patch: channel, frame, row, column)."""
        spec, m, p = self.spec, self.spec.merge_size, self.spec.patch_size
        channels, height, width = frames.shape[1:]
        grid = frames.view(-1, spec.temporal_patch_size, channels, height // (m * p), m, p, width // (m * p), m, p)
        return grid.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).flatten(5).flatten(1, 4)


def _rotation(rows: int, columns: int, merge_size: int, head_dim: int, device: torch.device) -> Rotate:
    """Turns the first half of a head's pairs by a patch's row, the second by its column; pairs are (i, i + head_dim / 2)."""
    places = torch.stack(
        torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1
    )  # (rows, columns, 2)
    cells = places.view(rows // merge_size, merge_size, columns // merge_size, merge_size, 2).transpose(1, 2)
    exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2)
    angles = cells.reshape(-1, 2, 1) * (1.0 / _THETA**exponents)  # (rows columns, 2, head_dim / 4)
    angles = angles.flatten(1).to(device)  # (rows columns, head_dim / 2)
    cos, sin = angles.cos(), angles.sin()

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.float().chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)

    return rotate
