"""Owns the encoder of Whisper (Radford et al., 2022): convolutions over a spectrogram, then layers that see every frame."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn import functional

from gpu_executor.models.towers.vit_layers import VitLayers, VitStack


@dataclasses.dataclass(frozen=True, slots=True)
class WhisperEncoder:
    """Facts of an encoder; it has two frames of a spectrogram for each of its positions."""

    layers: VitLayers
    num_mels: int
    num_positions: int

    @property
    def max_frames(self) -> int:
        """Frames of a spectrogram that are read at once."""
        return 2 * self.num_positions


class WhisperStack(nn.Module):
    """All of the encoder but its last norm, which is not everywhere in the same place."""

    def __init__(self, spec: WhisperEncoder) -> None:
        super().__init__()
        size = spec.layers.hidden_size
        self.conv1 = nn.Conv1d(spec.num_mels, size, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(size, size, kernel_size=3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.empty(spec.num_positions, size))
        self.stack = VitStack(spec.layers)

    def forward(self, mel: torch.Tensor, num_frames: int) -> torch.Tensor:
        """mel (M, F), of which num_frames are no padding -> (N, D), one row for every two frames, padding included."""
        x = functional.gelu(self.conv1(mel[None]))
        x = functional.gelu(self.conv2(x)).transpose(1, 2)  # (1, N, D)
        x = x + self.positions[: x.shape[1]]
        num_seen = num_rows(num_frames)
        seen = None
        if num_seen < x.shape[1]:
            seen = torch.arange(x.shape[1], device=x.device)[None] < num_seen
        return self.stack(x, seen=seen)[0]


def num_rows(num_frames: int) -> int:
    """Rows that the encoder makes of frames of a spectrogram."""
    return (num_frames + 1) // 2
