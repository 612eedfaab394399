"""Owns what mixers remember between steps: how much memory it is, and the tensors themselves."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values of one layer, in blocks."""

    k: torch.Tensor  # (B, G, S, K)
    v: torch.Tensor  # (B, G, S, K)


@dataclasses.dataclass(frozen=True, slots=True)
class PagedKv:
    """The state layout of attention: keys and values of every token, in blocks that a block table names."""

    num_kv_heads: int
    head_dim: int
    window: int | None = None  # older keys are never read

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Memory of one token."""
        return 2 * self.num_kv_heads * self.head_dim * dtype.itemsize

    def allocate(self, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device) -> KvCache:
        """Blocks with undefined content: whoever reads must not read what was never written."""
        shape = (num_blocks, self.num_kv_heads, block_size, self.head_dim)
        return KvCache(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
