"""Owns the tower of BLIP-2 (Li et al., 2023): EVA's vision transformer, and a Q-Former whose queries look at its patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from gpu_executor.models.towers.activations import ACTIVATIONS
from gpu_executor.models.towers.tower import Embed, TowerInput, normalized
from gpu_executor.models.towers.vit_layers import VitLayers, VitStack


@dataclasses.dataclass(frozen=True, slots=True)
class QFormer:
    """BERT over learned queries; every cross_frequency-th layer, from the first on, looks at patches of `patch_dim`."""

    num_queries: int
    hidden_size: int
    num_heads: int
    mlp_size: int
    num_layers: int
    cross_frequency: int
    act: str  # of activations.ACTIVATIONS
    eps: float
    patch_dim: int


@dataclasses.dataclass(frozen=True, slots=True)
class Blip2Vision:
    """Both transformers, and the text's width."""

    vit: VitLayers
    image_size: int
    patch_size: int
    qformer: QFormer
    out_size: int

    def build(self) -> Blip2Tower:
        return Blip2Tower(self)


class Blip2Tower(nn.Module):
    """Items have `pixels` (3, image_size, image_size), and a row for each query."""

    def __init__(self, spec: Blip2Vision) -> None:
        super().__init__()
        size, num_patches = spec.vit.hidden_size, (spec.image_size // spec.patch_size) ** 2
        self.patch = nn.Conv2d(3, size, spec.patch_size, spec.patch_size)
        self.class_embedding = nn.Parameter(torch.empty(size))
        self.positions = nn.Parameter(torch.empty(num_patches + 1, size))
        self.vit, self.norm = VitStack(spec.vit), spec.vit.make_norm()
        self.qformer = QFormerModel(spec.qformer)
        self.projector = nn.Linear(spec.qformer.hidden_size, spec.out_size)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        dtype = self.positions.dtype
        return [self._encoded(normalized(item.tensors, dtype)) for item in items]

    def _encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (3, H, W) -> (queries, out_size)."""
        patches = self.patch(pixels[None]).flatten(2).transpose(1, 2)  # (1, patches, D)
        x = torch.cat((self.class_embedding.expand(1, 1, -1), patches), 1) + self.positions
        return self.projector(self.qformer(self.norm(self.vit(x))))[0]


class QFormerModel(nn.Module):
    """All layers."""

    def __init__(self, spec: QFormer) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(spec.num_queries, spec.hidden_size))
        self.norm = nn.LayerNorm(spec.hidden_size, spec.eps)
        self.layers = nn.ModuleList(
            QFormerLayer(spec, crosses=index % spec.cross_frequency == 0) for index in range(spec.num_layers)
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """patches (N, L, patch_dim) -> (N, queries, D)."""
        x = self.norm(self.queries).expand(len(patches), -1, -1)
        for layer in self.layers:
            x = layer(x, patches)
        return x


class QFormerLayer(nn.Module):
    """Attention among queries, to patches where there is one, and an MLP; a norm behind each sum."""

    def __init__(self, spec: QFormer, *, crosses: bool) -> None:
        super().__init__()
        size = spec.hidden_size
        self.attn = QFormerAttention(size, size, spec.num_heads, spec.eps)
        self.cross = QFormerAttention(size, spec.patch_dim, spec.num_heads, spec.eps) if crosses else None
        self.up, self.down = nn.Linear(size, spec.mlp_size), nn.Linear(spec.mlp_size, size)
        self.norm, self.act = nn.LayerNorm(size, spec.eps), ACTIVATIONS[spec.act]

    def forward(self, x: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """x (N, queries, D) -> the same."""
        x = self.attn(x, x)
        if self.cross is not None:
            x = self.cross(x, patches)
        return self.norm(x + self.down(self.act(self.up(x))))


class QFormerAttention(nn.Module):
    """norm(x + attention of x to others)."""

    def __init__(self, size: int, others_size: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v = nn.Linear(size, size), nn.Linear(others_size, size), nn.Linear(others_size, size)
        self.o, self.norm = nn.Linear(size, size), nn.LayerNorm(size, eps)

    def forward(self, x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """x (N, queries, D), others (N, L, others_size) -> (N, queries, D)."""
        parts = self.q(x), self.k(others), self.v(others)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)  # (N, H, L, K)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.norm(x + self.o(mixed.transpose(1, 2).flatten(2)))
