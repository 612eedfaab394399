"""GLM-4V's tower (Wang et al., 2023, CogVLM; GLM, 2024): EVA-CLIP, whose norms stand behind the branches, and a gated MLP."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.tower import Embed, TowerInput, normalized
from gpu_executor.models.towers.vit_layers import VitLayers, VitStack


@dataclasses.dataclass(frozen=True, slots=True)
class Glm4Vision:
    """Facts of the tower; the table of positions has one for the class token, and all is divided by `divisor`."""

    vit: VitLayers
    patch_size: int
    num_positions: int
    mlp_size: int
    output_size: int
    divisor: float

    def build(self) -> nn.Module:
        """The tower with parameters of undefined content."""
        return Glm4VisionTower(self)


class Glm4VisionTower(nn.Module):
    """A picture (3, S, S) -> a row that begins it, one for 2 x 2 patches each, one that ends it."""

    def __init__(self, facts: Glm4Vision) -> None:
        super().__init__()
        self.divisor, size, output = facts.divisor, facts.vit.hidden_size, facts.output_size
        self.patch = nn.Conv2d(3, size, facts.patch_size, facts.patch_size)
        self.class_embedding = nn.Parameter(torch.empty(1, size))
        self.positions = nn.Parameter(torch.empty(facts.num_positions, size))
        self.vit = VitStack(facts.vit)
        self.join = nn.Conv2d(size, output, 2, 2)
        self.proj, self.norm = nn.Linear(output, output, bias=False), nn.LayerNorm(output)
        self.gate, self.up = (nn.Linear(output, facts.mlp_size, bias=False) for _ in range(2))
        self.down = nn.Linear(facts.mlp_size, output, bias=False)
        self.begin, self.end = (nn.Parameter(torch.empty(1, output)) for _ in range(2))

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Features (n, D) of each item."""
        return [self._rows(normalized(item.tensors, self.positions.dtype)) for item in items]

    def _rows(self, picture: torch.Tensor) -> torch.Tensor:
        patches = self.patch(picture[None])  # (1, size, rows, cols)
        x = torch.cat((self.class_embedding, patches[0].flatten(1).t())) + self.positions
        x = self.vit(x[None])[:, 1:].transpose(1, 2).unflatten(2, patches.shape[2:])
        x = self.join(x)[0].flatten(1).t()  # (rows * cols / 4, D)
        x = F.gelu(self.norm(self.proj(x)))
        x = self.down(F.silu(self.gate(x)) * self.up(x))
        return torch.cat((self.begin, x, self.end)) / self.divisor
