"""Owns the tower of Qwen2-Audio (Chu et al., 2024): Whisper's encoder, the mean of every two frames, and a linear."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from gpu_executor.models.towers.tower import Embed, TowerInput
from gpu_executor.models.towers.whisper import WhisperEncoder, WhisperStack, num_rows


@dataclasses.dataclass(frozen=True, slots=True)
class Qwen2Audio:
    """The encoder, and the text's width."""

    encoder: WhisperEncoder
    out_size: int

    def build(self) -> Qwen2AudioTower:
        return Qwen2AudioTower(self)


class Qwen2AudioTower(nn.Module):
    """Items have `input_features` (M, F) float32, and `num_frames` (1) of them that are no padding."""

    def __init__(self, spec: Qwen2Audio) -> None:
        super().__init__()
        self.encoder = WhisperStack(spec.encoder)
        self.norm = spec.encoder.layers.make_norm()
        self.projector = nn.Linear(spec.encoder.layers.hidden_size, spec.out_size)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        dtype = self.projector.weight.dtype
        return [
            self._encoded(item.tensors["input_features"].to(dtype), int(item.tensors["num_frames"])) for item in items
        ]

    def _encoded(self, mel: torch.Tensor, num_frames: int) -> torch.Tensor:
        x = self.encoder(mel, num_frames)
        pairs = x[: num_rows(num_frames) // 2 * 2].unflatten(0, (-1, 2))  # (N / 2, 2, D)
        return self.projector(self.norm(pairs.mean(1)))
