"""Owns what mixers remember between steps: how much memory it is, and the tensors themselves."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch


class State(Protocol):
    """What one layer remembers of all sequences."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of its memory."""


class StateLayout(Protocol):
    """How a layer's memory grows: with the tokens of a sequence, or with the number of sequences."""

    @property
    def window(self) -> int | None:
        """Tokens of a sequence, the current one included, whose memory in blocks is read; None if all are."""

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Memory of one token in blocks; 0 if none is kept there."""

    def bytes_per_sequence(self, dtype: torch.dtype) -> int:
        """Memory of one sequence that runs, beside its blocks; 0 if there is none."""

    def allocate(
        self, num_blocks: int, block_size: int, num_slots: int, *, dtype: torch.dtype, device: torch.device
    ) -> State:
        """Memory with undefined content: whoever reads must not read what was never written."""


@dataclasses.dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values of one layer, in the blocks that the tables of its group name (see gpu_executor.layer_groups)."""

    k: torch.Tensor  # (B, G, S, K)
    v: torch.Tensor  # (B, G, S, K)
    group: int = 0

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.k, self.v


@dataclasses.dataclass(frozen=True, slots=True)
class PagedKv:
    """The state layout of attention: keys and values of every token, in blocks that a block table names."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.num_kv_heads * self.head_dim * dtype.itemsize

    def bytes_per_sequence(self, dtype: torch.dtype) -> int:
        return 0

    def allocate(
        self, num_blocks: int, block_size: int, num_slots: int, *, dtype: torch.dtype, device: torch.device
    ) -> KvCache:
        shape = (num_blocks, self.num_kv_heads, block_size, self.head_dim)
        return KvCache(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))


@dataclasses.dataclass(frozen=True, slots=True)
class LatentCache:
    """One layer's latents, each with the part of the key that rotates, in blocks."""

    latents: torch.Tensor  # (B, S, kv_rank + rope_dim)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.latents,)


@dataclasses.dataclass(frozen=True, slots=True)
class LatentKv:
    """The state layout of multi-head latent attention: one vector of every token for all heads, in blocks."""

    kv_rank: int
    rope_dim: int
    window: int | None = None

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return (self.kv_rank + self.rope_dim) * dtype.itemsize

    def bytes_per_sequence(self, dtype: torch.dtype) -> int:
        return 0

    def allocate(
        self, num_blocks: int, block_size: int, num_slots: int, *, dtype: torch.dtype, device: torch.device
    ) -> LatentCache:
        shape = (num_blocks, block_size, self.kv_rank + self.rope_dim)
        return LatentCache(torch.empty(shape, dtype=dtype, device=device))


@dataclasses.dataclass(frozen=True, slots=True)
class SlotState:
    """What a state-space layer knows of each sequence, in slots. Channels lie side by side: a vector holds sixteen of them."""

    window: torch.Tensor  # (slots, W - 1, C): inputs that the convolution still sees, oldest first
    scan: torch.Tensor  # (slots, N, C) float32

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.window, self.scan

    def copy(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Slots `sources` (n) to slots `targets` (n), int64."""
        for tensor in self.tensors:
            tensor[targets] = tensor[sources]


@dataclasses.dataclass(frozen=True, slots=True)
class FixedSlots:
    """The state layout of a state space: one slot for each sequence that runs, of the same size at any length."""

    inner_size: int
    state_size: int
    conv_size: int

    @property
    def window(self) -> int | None:
        return None

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        return 0

    def bytes_per_sequence(self, dtype: torch.dtype) -> int:
        scan_bytes = self.state_size * torch.float32.itemsize  # the errors of all steps add up in it
        return self.inner_size * (scan_bytes + (self.conv_size - 1) * dtype.itemsize)

    def allocate(
        self, num_blocks: int, block_size: int, num_slots: int, *, dtype: torch.dtype, device: torch.device
    ) -> SlotState:
        return SlotState(
            torch.empty((num_slots, self.conv_size - 1, self.inner_size), dtype=dtype, device=device),
            torch.empty((num_slots, self.state_size, self.inner_size), dtype=torch.float32, device=device),
        )
