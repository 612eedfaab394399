"""Owns SigLIP (Zhai et al., 2023) for pictures of any shape: patches take positions by where they lie, as in Idefics2."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from gpu_executor.models.towers.vit_layers import VitLayers, VitStack


@dataclasses.dataclass(frozen=True, slots=True)
class Navit:
    """Facts of a transformer whose table of positions is a square grid."""

    vit: VitLayers
    patch_size: int
    positions_side: int


class NavitModel(nn.Module):
    """The transformer without the norm behind it, which not every model uses."""

    def __init__(self, spec: Navit) -> None:
        super().__init__()
        self.spec, size = spec, spec.vit.hidden_size
        self.patch = nn.Conv2d(3, size, spec.patch_size, spec.patch_size)
        self.positions = nn.Parameter(torch.empty(spec.positions_side**2, size))
        self.vit = VitStack(spec.vit)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (N, 3, H, W) -> (N, patches, D), row by row; what is not a whole patch at the far edges is left out."""
        patches = self.patch(pixels)  # (N, D, rows, columns)
        rows, columns = patches.shape[2:]
        side = self.spec.positions_side
        index = _nearest(rows, side)[:, None] * side + _nearest(columns, side)  # (rows, columns)
        return self.vit(patches.flatten(2).transpose(1, 2) + self.positions[index.flatten().to(pixels.device)])


def _nearest(count: int, side: int) -> torch.Tensor:
    """(count,) int64: which of `side` equal parts each of `count` equal parts begins in; at boundaries float32 decides."""
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    begins = torch.arange(count, dtype=torch.float32) * (1.0 / torch.tensor(count))
    return torch.bucketize(begins.clamp(max=1.0 - 1e-6), boundaries, right=True)
