"""Owns the decoder: one stack of blocks for every architecture, built from a spec and weights."""

from __future__ import annotations

import torch

from gpu_executor.batch import Batch
from gpu_executor.layers.linear import Linear
from gpu_executor.layers.mlp import GatedMlp, PlainMlp
from gpu_executor.mixers.attention import AttentionMixer
from gpu_executor.mixers.state import KvCache, PagedKv
from gpu_executor.models.block import BLOCKS, Block, FeedForward
from gpu_executor.models.rope import RopeTables
from gpu_executor.models.spec import Alibi, Attention, Layer, Mlp, ModelSpec, Rope
from gpu_executor.models.weights import Weights
from kernels.embedding import embedding


class Decoder:
    """A model for inference: call it with a batch for hidden states, then ask for the logits of the rows you need.

    It is no nn.Module: a step calls hundreds of layers, and plain attributes cost a fraction of a module's dispatch. What
    works on weights works on `weights`, by canonical name.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
        self.spec, self.weights, self.dtype, self.device = spec, weights, dtype, device
        decoder = spec.decoder
        tables = RopeTables(spec.max_model_len, device)
        self.blocks = [_block(spec, index, weights, tables) for index in range(len(decoder.layers))]
        self._embed, self._positions = weights.get("embed.weight"), weights.get("positions.weight")
        self._norm = weights.norm("norm", decoder.norm)
        head = self._embed if decoder.tied else weights.get("head.weight")
        self._head = Linear(head, weights.get("head.bias"))

    @property
    def state_layouts(self) -> tuple[PagedKv, ...]:
        """What each layer keeps between steps."""
        return tuple(block.mixer.layout for block in self.blocks)

    def __call__(self, batch: Batch, states: list[KvCache]) -> torch.Tensor:
        """Hidden states (T, D) after the last norm; writes the step's keys and values into `states`, one per layer."""
        x, residual = embedding(batch.token_ids, self._embed), None
        if self._positions is not None:
            x += embedding(batch.positions, self._positions)
        for block, state in zip(self.blocks, states, strict=True):
            x, residual = block(x, residual, batch, state)
        if residual is None:
            return x if self._norm is None else self._norm(x)
        return residual.add_(x) if self._norm is None else self._norm.add(x, residual)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (N, D) -> (N, V) float32, the caller's to change."""
        return self._head(hidden).float()


def _block(spec: ModelSpec, index: int, weights: Weights, tables: RopeTables) -> Block:
    layer, name = spec.decoder.layers[index], f"layers.{index}"
    norm1, norm2 = (weights.norm(f"{name}.{norm}", spec.decoder.norm) for norm in ("norm1", "norm2"))
    return BLOCKS[layer.residual](_mixer(layer, name, weights, tables), _mlp(layer.mlp, name, weights), norm1, norm2)


def _mixer(layer: Layer, name: str, weights: Weights, tables: RopeTables) -> AttentionMixer:
    """The mixer of a layer's spec. Another kind of mixer joins as another case."""
    match layer.mixer:
        case Attention(positions=positions) as spec:
            qkv, o = weights.linear(f"{name}.mixer.qkv"), weights.linear(f"{name}.mixer.o")
            slopes = None
            if isinstance(positions, Alibi):
                slopes = torch.tensor(positions.slopes, dtype=torch.float32, device=qkv.weight.device)
            cos_sin = tables(positions) if isinstance(positions, Rope) else None
            return AttentionMixer(spec, qkv, o, cos_sin=cos_sin, alibi_slopes=slopes)


def _mlp(spec: Mlp, name: str, weights: Weights) -> FeedForward:
    """The feed-forward layer of a spec, gated if there is a gate matrix. Another kind joins as another case."""
    match spec:
        case Mlp():
            gate_up, down = weights.linear(f"{name}.mlp.gate_up"), weights.linear(f"{name}.mlp.down")
            if gate_up is not None:
                return GatedMlp(spec.act, gate_up, down)
            return PlainMlp(spec.act, weights.linear(f"{name}.mlp.up"), down)
