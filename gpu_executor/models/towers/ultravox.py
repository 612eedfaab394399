"""Owns the tower of Ultravox (Fixie.ai, 2024): Whisper's encoder over windows of a clip, and frames stacked to tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from gpu_executor.models.towers.activations import ACTIVATIONS
from gpu_executor.models.towers.tower import Embed, TowerInput
from gpu_executor.models.towers.whisper import WhisperEncoder, WhisperStack, num_rows

_EPS = 1e-6


@dataclasses.dataclass(frozen=True, slots=True)
class Ultravox:
    """The encoder, and a projector whose second norm stands in the middle, or behind it in version 0.4 and before."""

    encoder: WhisperEncoder
    stack_factor: int  # rows of the encoder that make a token
    inner_size: int
    act: str  # of activations.ACTIVATIONS, or "swiglu"
    norm_in_middle: bool
    out_size: int

    def build(self) -> UltravoxTower:
        return UltravoxTower(self)


class UltravoxTower(nn.Module):
    """Items have `audio_values` (M, F) float32, of any number of frames."""

    def __init__(self, spec: Ultravox) -> None:
        super().__init__()
        self.spec = spec
        stacked_size = spec.encoder.layers.hidden_size * spec.stack_factor
        middle_size = spec.inner_size // 2 if spec.act == "swiglu" else spec.inner_size
        self.encoder = WhisperStack(spec.encoder)
        self.norm = spec.encoder.layers.make_norm()
        self.norm_pre = nn.RMSNorm(stacked_size, _EPS)
        self.linear1 = nn.Linear(stacked_size, spec.inner_size, bias=False)
        self.norm_mid = nn.RMSNorm(middle_size, _EPS) if spec.norm_in_middle else nn.Identity()
        self.linear2 = nn.Linear(middle_size, spec.out_size, bias=False)
        self.norm_post = nn.Identity() if spec.norm_in_middle else nn.RMSNorm(spec.out_size, _EPS)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        dtype = self.linear1.weight.dtype
        return [self._encoded(item.tensors["audio_values"].to(dtype)) for item in items]

    def _encoded(self, mel: torch.Tensor) -> torch.Tensor:
        """Windows after the first are read as if they were full, with the padding hidden, as the processor of Fixie pads them."""
        width = self.spec.encoder.max_frames
        first, *others = mel.split(width, 1)
        rows = [self._projected(first, first.shape[1])]
        rows += [self._projected(functional.pad(w, (0, width - w.shape[1])), w.shape[1]) for w in others]
        return torch.cat(rows)

    def _projected(self, mel: torch.Tensor, num_frames: int) -> torch.Tensor:
        x = self.norm(self.encoder(mel, num_frames))  # (N, D)
        factor = self.spec.stack_factor
        num_tokens = -(-num_rows(num_frames) // factor)
        x = functional.pad(x, (0, 0, 0, max(0, num_tokens * factor - len(x))))[: num_tokens * factor]
        x = self.linear1(self.norm_pre(x.view(num_tokens, -1)))
        if self.spec.act == "swiglu":
            value, gate = x.chunk(2, -1)
            x = functional.silu(gate) * value
        else:
            x = ACTIVATIONS[self.spec.act](x)
        return self.norm_post(self.linear2(self.norm_mid(x)))
