"""Owns cross attention: a decoder's queries read what an encoder, or a tower, made of a sequence's other input."""

from __future__ import annotations

import torch

from gpu_executor.batch import Batch
from gpu_executor.layers.linear import Linear
from gpu_executor.layers.norm import NormLayer
from gpu_executor.mixers.state import KvCache, PagedKv
from gpu_executor.models.spec import Attention
from kernels.paged_attention import paged_attention
from kernels.rope_kv_write import rope_kv_write


class CrossAttention:
    """Attention to what was encoded. Its keys and values lie in the layer's own cache, in blocks of their own."""

    def __init__(
        self,
        spec: Attention,
        q: Linear,
        kv: Linear,
        o: Linear,
        *,
        q_norm: NormLayer | None = None,
        k_norm: NormLayer | None = None,
    ) -> None:
        """q (HK, D), kv (2GK, D), o (D, HK); norms of each head."""
        self.q, self.kv, self.o = q, kv, o
        self._q_norm, self._k_norm = q_norm, k_norm
        self.layout = PagedKv(spec.num_kv_heads, spec.head_dim)
        self._num_heads, self._num_kv_heads, self._head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self._scale = spec.scale

    def remember(self, encoded: torch.Tensor, slot_mapping: torch.Tensor, state: KvCache) -> None:
        """encoded (T, D) to slots (T) of the cache."""
        k, v = self.kv(encoded).view(-1, 2, self._num_kv_heads, self._head_dim).unbind(1)  # (T, G, K) each
        if self._k_norm is not None:
            k = self._k_norm(k)
        rope_kv_write(k, k, v, None, slot_mapping, state.k, state.v, slot_mapping)  # rotates nothing: no queries either

    def __call__(self, x: torch.Tensor, batch: Batch, state: KvCache) -> torch.Tensor:
        """x (T, D) -> (T, D), of the tokens that read something."""
        cross = batch.cross
        assert cross is not None
        q = self.q(x).view(-1, self._num_heads, self._head_dim)  # (T, H, K)
        if self._q_norm is not None:
            q = self._q_norm(q)
        attended = paged_attention(
            q, state.k, state.v, cross.block_table, cross.query_start, cross.seq_lens, scale=self._scale, causal=False
        )
        return self.o(attended.flatten(1))  # (T, HK) -> (T, D)
