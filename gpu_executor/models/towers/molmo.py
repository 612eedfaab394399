"""Molmo's tower (Deitke et al., 2024): two layers of CLIP over crops, pooled by attention and added to embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.tower import Embed, TowerInput


@dataclasses.dataclass(frozen=True, slots=True)
class MolmoVision:
    """Facts of the tower; `num_tokens` are those that only pictures bring, whose ids begin at `first_token_id`."""

    vision: ClipVit
    projector_size: int
    output_size: int
    first_token_id: int
    num_tokens: int

    def build(self) -> nn.Module:
        """The tower with parameters of undefined content."""
        return MolmoVisionTower(self)


class MolmoVisionTower(nn.Module):
    """A picture's crops -> a row for each of its tokens: the token's embedding, and what the crops have for it."""

    def __init__(self, facts: MolmoVision) -> None:
        super().__init__()
        self.facts, size, joined = facts, facts.vision.vit.hidden_size, facts.vision.output_size
        self.vision = facts.vision.build()
        self.padding = nn.Parameter(torch.empty(2, joined))  # of patches without picture, and of those with some
        self.q, self.k, self.v = (nn.Linear(joined, size) for _ in range(3))
        self.o = nn.Linear(size, size)
        self.gate, self.up = (nn.Linear(size, facts.projector_size, bias=False) for _ in range(2))
        self.down = nn.Linear(facts.projector_size, facts.output_size, bias=False)
        self.tokens = nn.Parameter(torch.empty(facts.num_tokens, facts.output_size))

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """Rows (tokens, D) of each item."""
        return [self._rows(item) for item in items]

    def _rows(self, item: TowerInput) -> torch.Tensor:
        tensors, side = item.tensors, self.facts.vision.image_size
        crops = [
            tensors["pixels"][:, top : top + side, left : left + side] for top, left in tensors["crop_starts"].tolist()
        ]
        cells = self._cells(torch.stack([tensors["whole"], *crops]).to(self.padding.dtype), tensors["image_masks"])
        rows = self.tokens[tensors["image_tokens"] - self.facts.first_token_id]  # a copy
        places = tensors["image_input_idx"]
        kept = places >= 0
        rows[places[kept]] += cells[kept]
        return rows

    def _cells(self, crops: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """crops (N, 3, S, S), masks (N, patches) of how much is picture -> (N * cells, D)."""
        empty = masks == 0
        partly = (masks < 1) & ~empty
        x = self.vision(crops)
        x = x + self.padding[0] * empty[..., None].to(x.dtype) + self.padding[1] * partly[..., None].to(x.dtype)
        side = self.facts.vision.side
        missing = side % 2
        x = F.pad(x.unflatten(1, (side, side)), (0, 0, 0, missing, 0, missing))
        x = (
            x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
        )  # (cells, 4, joined)
        parts = self.q(x.mean(1, keepdim=True)), self.k(x), self.v(x)
        heads = self.facts.vision.vit.num_heads
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)  # (cells, H, 1 or 4, K)
        pooled = self.o(F.scaled_dot_product_attention(q, k, v).flatten(1))
        return self.down(F.silu(self.gate(pooled)) * self.up(pooled))
