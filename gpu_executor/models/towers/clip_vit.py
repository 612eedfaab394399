"""Owns the vision transformers of CLIP and SigLIP: pictures of one size in, the hidden states of some layers out."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from gpu_executor.models.towers.vit_layers import VitLayers, VitStack


@dataclasses.dataclass(frozen=True, slots=True)
class ClipVit:
    """Facts of a transformer with a learned position for each patch.

    CLIP (Radford et al., 2021) puts a class token before the patches and norms what enters the first layer; SigLIP (Zhai et
    al., 2023) does neither, and its patches have a bias. Hidden states are counted from 0, which is what enters the first
    layer; those in `outputs` are joined along D. `vit` has no layers above them.
    """

    vit: VitLayers
    image_size: int
    patch_size: int
    outputs: tuple[int, ...]
    class_token: bool
    drops_first: bool = False  # the first row of each picture, which is the class token where there is one
    final_norm: bool = False  # behind the last layer
    num_channels: int = 3

    @property
    def side(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def output_size(self) -> int:
        return len(self.outputs) * self.vit.hidden_size

    def build(self) -> ClipVitModel:
        return ClipVitModel(self)


class ClipVitModel(nn.Module):
    """The transformer."""

    def __init__(self, facts: ClipVit) -> None:
        super().__init__()
        self.facts, size = facts, facts.vit.hidden_size
        self.patch = nn.Conv2d(facts.num_channels, size, facts.patch_size, facts.patch_size, bias=not facts.class_token)
        self.class_embedding = nn.Parameter(torch.empty(size)) if facts.class_token else None
        self.positions = nn.Parameter(torch.empty(facts.class_token + facts.side**2, size))
        self.pre_norm = facts.vit.make_norm() if facts.class_token else nn.Identity()
        self.vit = VitStack(facts.vit)
        self.final_norm = facts.vit.make_norm() if facts.final_norm else nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels (N, C, image_size, image_size) -> (N, rows, output_size), the patches row by row."""
        x = self.patch(pixels).flatten(2).transpose(1, 2)  # (N, patches, D)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        states = [self.pre_norm(x + self.positions)]
        for layer in self.vit.layers:
            states.append(layer(states[-1]))
        states[-1] = self.final_norm(states[-1])
        joined = torch.cat([states[index] for index in self.facts.outputs], -1)
        return joined[:, 1:] if self.facts.drops_first else joined
