"""Owns the attention mixer: project, rotate and write the cache, attend, project back."""

from __future__ import annotations

import torch

from gpu_executor.batch import Batch
from gpu_executor.layers.linear import Linear
from gpu_executor.layers.norm import NormLayer
from gpu_executor.mixers.state import KvCache, PagedKv
from gpu_executor.models.spec import Attention
from kernels.paged_attention import paged_attention
from kernels.rope_kv_write import rope_kv_write


class AttentionMixer:
    """Grouped-query attention. Queries, keys and values come from one fused projection."""

    def __init__(
        self,
        spec: Attention,
        qkv: Linear,
        o: Linear,
        *,
        q_norm: NormLayer | None = None,
        k_norm: NormLayer | None = None,
        cos_sin: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> None:
        """qkv ((H + 2G)K, D), o (D, HK), cos_sin (P, rope_dim) where heads rotate, alibi_slopes (H) float32."""
        self.qkv, self.o, self.cos_sin, self.alibi_slopes = qkv, o, cos_sin, alibi_slopes
        self.layout = PagedKv(spec.num_kv_heads, spec.head_dim, spec.window if spec.causal else None)
        self._q_norm, self._k_norm, self._norms_whole = q_norm, k_norm, spec.qk_norm == "projection"
        self._heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        self._num_heads = sum(self._heads)
        self._head_dim, self._clip = spec.head_dim, spec.clip
        self._options = {
            "scale": spec.scale, "window": spec.window, "softcap": spec.softcap, "causal": spec.causal,
            "alibi_slopes": alibi_slopes,
        }  # fmt: skip

    def __call__(self, x: torch.Tensor, batch: Batch, state: KvCache) -> torch.Tensor:
        """x (T, D) -> (T, D); writes the step's keys and values into the cache."""
        q = self.project(x, batch, state)
        attended = paged_attention(
            q, state.k, state.v, batch.block_tables[state.group], batch.query_start, batch.seq_lens, **self._options
        )
        for index in batch.whole:
            self._attend_whole(index, q, attended, batch, state)
        return self.o(attended.flatten(1))  # (T, HK) -> (T, D)

    def _attend_whole(self, index: int, q: torch.Tensor, attended: torch.Tensor, batch: Batch, state: KvCache) -> None:
        """Writes into `attended` (T, H, K) the rows of a sequence whose tokens see all keys, whatever the layer's window."""
        start, end = batch.query_start[index : index + 2].tolist()
        rows = torch.tensor([0, end - start], dtype=torch.int32, device=q.device)
        one = slice(index, index + 1)
        attended[start:end] = paged_attention(
            q[start:end], state.k, state.v, batch.block_tables[state.group][one], rows, batch.seq_lens[one],
            **(self._options | {"causal": False, "window": None}),
        )  # fmt: skip

    def project(self, x: torch.Tensor, batch: Batch, state: KvCache) -> torch.Tensor:
        """x (T, D) -> queries (T, H, K), ready to attend; writes the step's keys and values into the cache."""
        qkv = self.qkv(x).view(-1, self._num_heads, self._head_dim)  # (T, H + 2G, K)
        q, k, v = qkv.split(self._heads, 1)
        if self._q_norm is not None:
            q, k = self._normed(self._q_norm, q), self._normed(self._k_norm, k)
        if self._clip is not None:
            q, k, v = (t.clamp(-self._clip, self._clip) for t in (q, k, v))
        cos_sin, positions = self.cos_sin, batch.positions
        if batch.rotation is not None and cos_sin is not None:
            cos_sin, positions = batch.rotation.cos_sin, batch.rotation.rows
        return rope_kv_write(q, k, v, cos_sin, positions, state.k, state.v, batch.slot_mappings[state.group])

    def _normed(self, norm: NormLayer, heads: torch.Tensor) -> torch.Tensor:
        """heads (T, n, K) -> the same, normalized one by one or all together."""
        if not self._norms_whole:
            return norm(heads)
        return norm(heads.flatten(1)).view(heads.shape)  # (T, nK) -> (T, n, K)
