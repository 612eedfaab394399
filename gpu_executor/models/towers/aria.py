"""Owns the tower of Aria (Li et al., 2024): SigLIP at a picture's own shape, and learned queries that look at its patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from gpu_executor.models.towers.activations import gelu_tanh
from gpu_executor.models.towers.navit import Navit, NavitModel
from gpu_executor.models.towers.tower import Embed, TowerInput, normalized


@dataclasses.dataclass(frozen=True, slots=True)
class AriaVision:
    """A transformer, and how many queries there are for a square of so many patches: pairs (patches, queries)."""

    navit: Navit
    queries: tuple[tuple[int, int], ...]
    out_size: int

    def build(self) -> AriaTower:
        return AriaTower(self)


class AriaTower(nn.Module):
    """Items have `pixels` (crops, 3, H, W) without the padding to a square, and the square's `max_image_size` (1)."""

    def __init__(self, spec: AriaVision) -> None:
        super().__init__()
        self.spec = spec
        self.vision = NavitModel(spec.navit)
        self.projector = AriaProjector(spec)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        dtype = self.projector.queries.dtype
        return [self._encoded(item, dtype) for item in items]

    def _encoded(self, item: TowerInput, dtype: torch.dtype) -> torch.Tensor:
        """Patches of padding are hidden from all others and from the queries, so that they need not be there."""
        side = int(item.tensors["max_image_size"]) // self.spec.navit.patch_size
        num_queries = dict(self.spec.queries)[side**2]
        return self.projector(self.vision(normalized(item.tensors, dtype)), num_queries).flatten(0, 1)


class AriaProjector(nn.Module):
    """Attention of queries to patches. Queries, keys and values go through two linears each, as the paper's code has it."""

    def __init__(self, spec: AriaVision) -> None:
        super().__init__()
        size = spec.navit.vit.hidden_size
        self.num_heads = spec.navit.vit.num_heads
        self.queries = nn.Parameter(torch.empty(max(count for _, count in spec.queries), size))
        self.query_norm, self.patch_norm, self.norm = nn.LayerNorm(size), nn.LayerNorm(size), nn.LayerNorm(size)
        self.q1, self.k1, self.v1 = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.q2, self.k2, self.v2 = (nn.Linear(size, size) for _ in range(3))
        self.o1, self.o2 = nn.Linear(size, size), nn.Linear(size, size)
        self.up = nn.Linear(size, spec.out_size, bias=False)
        self.down = nn.Linear(spec.out_size, spec.out_size, bias=False)

    def forward(self, patches: torch.Tensor, num_queries: int) -> torch.Tensor:
        """patches (N, L, D) -> (N, num_queries, out_size)."""
        queries = self.query_norm(self.queries[:num_queries]).expand(len(patches), -1, -1)
        patches = self.patch_norm(patches)
        parts = self.q2(self.q1(queries)), self.k2(self.k1(patches)), self.v2(self.v1(patches))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)  # (N, H, L, K)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.down(gelu_tanh(self.up(self.norm(self.o2(self.o1(mixed))))))
