"""Owns the mixer of block-sparse attention: attention in all but the keys that it looks at."""

from __future__ import annotations

import torch

from gpu_executor.batch import Batch
from gpu_executor.mixers.attention import AttentionMixer
from gpu_executor.mixers.state import KvCache
from gpu_executor.models.spec import BlockSparseAttention
from kernels.block_sparse_attention import block_sparse_attention


class BlockSparseMixer:
    """Projects and keeps keys and values as the attention mixer that it holds does. No key is ever out of all heads' sight."""

    def __init__(self, spec: BlockSparseAttention, dense: AttentionMixer) -> None:
        self.dense, self.layout = dense, dense.layout
        self._options = {
            "scale": spec.attention.scale, "sparse_block_size": spec.sparse_block_size,
            "num_local_blocks": spec.num_local_blocks, "stride": spec.stride, "head_step": spec.head_step,
        }  # fmt: skip

    def __call__(self, x: torch.Tensor, batch: Batch, state: KvCache) -> torch.Tensor:
        """x (T, D) -> (T, D); writes the step's keys and values into the cache."""
        q = self.dense.project(x, batch, state)  # (T, H, K)
        attended = block_sparse_attention(
            q, state.k, state.v, batch.block_tables[state.group], batch.query_start, batch.seq_lens, **self._options
        )
        return self.dense.o(attended.flatten(1))  # (T, HK) -> (T, D)
