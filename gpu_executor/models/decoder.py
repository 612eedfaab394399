"""Owns the decoder: one stack of blocks for every architecture, built from a spec and weights."""

from __future__ import annotations

import torch

from gpu_executor.batch import Batch
from gpu_executor.layers.linear import Linear
from gpu_executor.layers.mlp import GatedMlp, PlainMlp
from gpu_executor.layers.norm import make_norm
from gpu_executor.mixers.attention import AttentionMixer
from gpu_executor.mixers.state import KvCache, PagedKv
from gpu_executor.models.rope import cos_sin_table
from gpu_executor.models.spec import Layer, ModelSpec, Rope
from gpu_executor.models.weights import Weights
from kernels.embedding import embedding


class Block:
    """A layer. The residual is carried beside the stream, so that each add is fused with the norm that follows it.

    x ─▶ + ─▶ norm1 ─▶ mixer ─▶ + ─▶ norm2 ─▶ mlp ─▶ (added by the next block)
         ▲                      ▲
    residual ───────────────────┴──────────────────▶
    """

    def __init__(
        self, layer: Layer, index: int, weights: Weights, spec: ModelSpec, cos_sin: torch.Tensor | None
    ) -> None:
        def linear(name: str) -> Linear:
            weight = weights.get(f"layers.{index}.{name}.weight")
            assert weight is not None, name
            return Linear(weight, weights.get(f"layers.{index}.{name}.bias"))

        def norm(name: str):
            weight = weights.get(f"layers.{index}.{name}.weight")
            return make_norm(spec.decoder.norm, weight, weights.get(f"layers.{index}.{name}.bias"))

        self.norm1, self.add_norm1 = norm("norm1")
        self.mixer = AttentionMixer(layer.mixer, linear("qkv"), linear("mixer.o"), cos_sin)
        _, self.add_norm2 = norm("norm2")
        gated = weights.get(f"layers.{index}.gate_up.weight") is not None
        down = linear("mlp.down")
        self.mlp = (
            GatedMlp(layer.mlp.act, linear("gate_up"), down)
            if gated
            else PlainMlp(layer.mlp.act, linear("mlp.up"), down)
        )

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: KvCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x (T, D) and what it is still to be added to (None in the first block) -> the same two."""
        if residual is None:
            x, residual = self.norm1(x), x
        else:
            x, residual = self.add_norm1(x, residual)
        x, residual = self.add_norm2(self.mixer(x, batch, state), residual)
        return self.mlp(x), residual


class Decoder:
    """A model for inference: call it with a batch for hidden states, then ask for the logits of the rows you need."""

    def __init__(self, spec: ModelSpec, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
        self.spec, self.weights, self.dtype, self.device = spec, weights, dtype, device
        decoder = spec.decoder
        tables: dict[Rope, torch.Tensor] = {}
        for rope in {layer.mixer.rope for layer in decoder.layers} - {None}:
            tables[rope] = cos_sin_table(rope, spec.max_model_len).to(device)
        self.blocks = [
            Block(layer, index, weights, spec, tables.get(layer.mixer.rope))
            for index, layer in enumerate(decoder.layers)
        ]
        self._embed, self._positions = weights.get("embed.weight"), weights.get("positions.weight")
        _, self._add_norm = make_norm(decoder.norm, weights.get("norm.weight"), weights.get("norm.bias"))
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
        return self._add_norm(x, residual)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (N, D) -> (N, V) float32, the caller's to change."""
        return self._head(hidden).float()
