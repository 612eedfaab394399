"""Owns Llava's tower: a vision transformer and a projector, one picture at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from gpu_executor.models.towers.activations import ACTIVATIONS
from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.pixtral_vit import PixtralVit
from gpu_executor.models.towers.tower import Embed, TowerInput, normalized


@dataclasses.dataclass(frozen=True, slots=True)
class Projector:
    """down(act(up(x))), from the width of a vision transformer to that of the text model."""

    input_size: int
    output_size: int
    act: str
    bias: bool = True

    def build(self) -> ProjectorModel:
        return ProjectorModel(self)


class ProjectorModel(nn.Module):
    def __init__(self, facts: Projector) -> None:
        super().__init__()
        self.act = ACTIVATIONS[facts.act]
        self.up = nn.Linear(facts.input_size, facts.output_size, facts.bias)
        self.down = nn.Linear(facts.output_size, facts.output_size, facts.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., input_size) -> (..., output_size)."""
        return self.down(self.act(self.up(x)))


@dataclasses.dataclass(frozen=True, slots=True)
class LinearProjector:
    """One linear layer."""

    input_size: int
    output_size: int

    def build(self) -> nn.Linear:
        return nn.Linear(self.input_size, self.output_size)


@dataclasses.dataclass(frozen=True, slots=True)
class Llava:
    """Facts of the tower."""

    vision: ClipVit | PixtralVit
    projector: Projector | LinearProjector

    def build(self) -> LlavaTower:
        return LlavaTower(self)


class LlavaTower(nn.Module):
    """Each picture's patches, projected."""

    def __init__(self, facts: Llava) -> None:
        super().__init__()
        self.vision = facts.vision.build()
        self.projector = facts.projector.build()

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        dtype = next(self.projector.parameters()).dtype
        pictures = (normalized(item.tensors, dtype) for item in items)  # (C, H, W) each
        return [self.projector(self.vision(picture.unsqueeze(0)))[0] for picture in pictures]
