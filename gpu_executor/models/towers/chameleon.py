"""Owns the tower of Chameleon (Chameleon Team, 2024): the encoder of a VQ-GAN (Esser et al., 2021), whose codes are tokens.

Every operation is written in the order in which transformers writes it: between two codes that are nearly as close, the last
bit decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from gpu_executor.models.towers.tower import Embed, TowerInput

_NUM_GROUPS, _EPS = 32, 1e-6


@dataclasses.dataclass(frozen=True, slots=True)
class VqGan:
    """Facts of the encoder. A level has `num_blocks` blocks of `channels[level]`, and all but the last halve the picture."""

    in_channels: int
    base_channels: int
    channels: tuple[int, ...]
    num_blocks: int
    attends: tuple[bool, ...]  # of each level: attention behind each of its blocks
    middle_attends: bool
    latent_channels: int  # that the encoder gives
    code_size: int
    token_ids: tuple[int, ...]  # of each code

    def build(self) -> VqGanTower:
        return VqGanTower(self)


class VqGanTower(nn.Module):
    """Items have `pixels` (C, H, W) uint8, and `levels` (C, 256) float32, what each value of a channel stands for."""

    def __init__(self, facts: VqGan) -> None:
        super().__init__()
        self.stem = _conv3(facts.in_channels, facts.base_channels)
        sizes = (facts.base_channels, *facts.channels)
        self.levels = nn.ModuleList(
            _Level(before, after, facts.num_blocks, attends=attends, shrinks=after_level < len(facts.channels))
            for before, after, attends, after_level in zip(
                sizes, sizes[1:], facts.attends, range(1, len(sizes)), strict=False
            )
        )
        last = sizes[-1]
        attention = [_Attention(last)] if facts.middle_attends else []
        self.middle = nn.ModuleList([_Block(last, last), *attention, _Block(last, last)])
        self.norm = _norm(last)
        self.latent = _conv3(last, facts.latent_channels)
        self.project = nn.Conv2d(facts.latent_channels, facts.code_size, 1)
        self.codes = nn.Parameter(torch.empty(len(facts.token_ids), facts.code_size))
        self.register_buffer("token_ids", torch.tensor(facts.token_ids), persistent=False)

    def forward(self, items: Sequence[TowerInput], embed: Embed) -> list[torch.Tensor]:
        """The embeddings (n, D) of each item's tokens, row by row."""
        return [embed(self.tokens(item.tensors["pixels"], item.tensors["levels"])) for item in items]

    def tokens(self, pixels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """(n,) int64."""
        if levels.shape[1:] != (256,):  # a byte would be no index of it, which on a GPU harms everyone
            raise ValueError(f"levels have the shape {list(levels.shape)}; each channel has 256")
        values = torch.stack([of[channel.long()] for of, channel in zip(levels, pixels, strict=True)])
        x = self.stem(values[None].to(self.codes.dtype))
        for level in self.levels:
            x = level(x)
        for layer in self.middle:
            x = layer(x)
        x = self.project(self.latent(_swish(self.norm(x))))  # (1, code_size, rows, columns)
        return self.token_ids[self._nearest(x.permute(0, 2, 3, 1).flatten(0, 2))]

    def _nearest(self, x: torch.Tensor) -> torch.Tensor:
        """x (n, code_size) -> the code at the least distance, (n,): |x|^2 + |code|^2 - 2 x code, in float32."""
        x, codes = x.float(), self.codes.float()
        distances = (x**2).sum(1, keepdim=True) + (codes**2).sum(1) - 2 * torch.einsum("bd,dn->bn", x, codes.t())
        return distances.argmin(1)


class _Level(nn.Module):
    def __init__(self, before: int, after: int, num_blocks: int, *, attends: bool, shrinks: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(after if index else before, after) for index in range(num_blocks))
        self.attentions = nn.ModuleList(_Attention(after) for _ in range(num_blocks if attends else 0))
        self.shrink = nn.Conv2d(after, after, 3, stride=2) if shrinks else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (1, before, H, W) -> (1, after, H / 2, W / 2), or as large as it was."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[index](x)
        return x if self.shrink is None else self.shrink(F.pad(x, (0, 1, 0, 1)))


class _Block(nn.Module):
    """Two convolutions beside the stream, which has one of its own where the number of channels changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), _conv3(before, after)
        self.norm2, self.conv2 = _norm(after), _conv3(after, after)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.conv1(_swish(self.norm1(x)))
        return self.shortcut(x) + self.conv2(_swish(self.norm2(branch)))


class _Attention(nn.Module):
    """One head over all places of the picture, added to the stream."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.o = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q, k, v = (projection(normed).flatten(2) for projection in (self.q, self.k, self.v))  # (1, C, places)
        weights = F.softmax(torch.bmm(q.permute(0, 2, 1), k) * x.shape[1] ** -0.5, dim=2)
        return x + self.o(torch.bmm(v, weights.permute(0, 2, 1)).view(x.shape))


def _conv3(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_NUM_GROUPS, channels, _EPS)


def _swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)
