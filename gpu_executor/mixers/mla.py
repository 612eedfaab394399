"""Owns the mixer of multi-head latent attention: project to latents, write them to the cache, attend over them."""

from __future__ import annotations

import torch

from gpu_executor.batch import Batch
from gpu_executor.layers.linear import Linear
from gpu_executor.layers.norm import NormLayer
from gpu_executor.mixers.state import LatentCache, LatentKv
from gpu_executor.models.spec import Mla
from kernels.head_linear import head_linear
from kernels.mla_attention import mla_attention
from kernels.rope_latent_write import rope_latent_write


class MlaMixer:
    """Attention over latents. The matrices that make keys and values of them are applied to queries and outputs instead."""

    def __init__(
        self,
        spec: Mla,
        *,
        down: Linear,
        q: Linear,
        kv_b: torch.Tensor,
        o: Linear,
        q_norm: NormLayer | None,
        kv_norm: NormLayer,
        cos_sin: torch.Tensor,
    ) -> None:
        """down (C + P, D), or (q_rank + C + P, D) where queries have a latent too, and q_norm; cos_sin (positions, P).

        q (H(N + P), D or q_rank), kv_b (H(N + V), C), o (D, HV).
        """
        self.down, self.q, self.kv_b, self.o, self.cos_sin = down, q, kv_b, o, cos_sin
        self.layout = LatentKv(spec.kv_rank, spec.rope.dim)
        self._q_norm, self._kv_norm = q_norm, kv_norm
        latents = () if spec.q_rank is None else (spec.q_rank,)
        self._latents = (*latents, spec.kv_rank, spec.rope.dim)
        self._parts = (spec.nope_dim, spec.rope.dim)
        per_head = kv_b.view(spec.num_heads, spec.nope_dim + spec.v_dim, spec.kv_rank)
        to_keys, self._to_values = per_head.split((spec.nope_dim, spec.v_dim), 1)  # (H, N, C), (H, V, C)
        self._to_keys = to_keys.transpose(1, 2).contiguous()  # (H, C, N): a copy, as products read it
        self._num_heads, self._kv_rank, self._scale = spec.num_heads, spec.kv_rank, spec.scale

    def __call__(self, x: torch.Tensor, batch: Batch, state: LatentCache) -> torch.Tensor:
        """x (T, D) -> (T, D); writes the step's latents into the cache."""
        *q_latent, latent, k_rope = self.down(x).split(self._latents, 1)  # (T, q_rank)?, (T, C), (T, P)
        q = self.q(x if self._q_norm is None else self._q_norm(q_latent[0]))
        q_nope, q_rope = q.view(len(x), self._num_heads, -1).split(self._parts, 2)  # (T, H, N), (T, H, P)
        q_rope = rope_latent_write(
            q_rope, k_rope, self._kv_norm(latent), self.cos_sin, batch.positions, state.latents, batch.slot_mappings[0]
        )
        absorbed = head_linear(q_nope, self._to_keys)  # (T, H, C)
        attended = mla_attention(
            torch.cat((absorbed, q_rope), 2), state.latents, batch.block_tables[0], batch.query_start, batch.seq_lens,
            kv_rank=self._kv_rank, scale=self._scale,
        )  # fmt: skip
        return self.o(head_linear(attended, self._to_values).flatten(1))  # (T, HV) -> (T, D)
