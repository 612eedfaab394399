"""Owns a stack: an embedding, blocks, and a norm, built from a spec and weights. A decoder is one with a head behind it."""

from __future__ import annotations

import collections
import dataclasses

import torch

from gpu_executor.batch import Batch, Rotation
from gpu_executor.mixers.state import State, StateLayout
from gpu_executor.models.block import Block
from gpu_executor.models.build import build_block
from gpu_executor.models.rope import RopeTables, rotate_by_axes
from gpu_executor.models.spec import DecoderSpec, Rope
from gpu_executor.models.weights import Weights
from kernels.embedding import embedding


class Embedding:
    """Rows of the vocabulary's table, scaled: what media's features take the place of."""

    def __init__(self, weight: torch.Tensor, scale: float) -> None:
        """weight (V, D)."""
        # The scale is rounded to the number format, as the models' own code does.
        self.weight, self._scale = weight, torch.tensor(scale, dtype=weight.dtype).item()

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids (n,) int64 -> (n, D)."""
        x = embedding(token_ids, self.weight)
        if self._scale != 1.0:
            x *= self._scale
        return x


class Stack:
    """Everything of a spec up to the hidden states. The tensors' names begin with `prefix`, but for the embedding's."""

    def __init__(self, spec: DecoderSpec, weights: Weights, tables: RopeTables, *, prefix: str = "") -> None:
        self.blocks = [build_block(spec, index, weights, tables, prefix) for index in range(len(spec.layers))]
        self.embed = Embedding(weights.get("embed.weight"), spec.embed_scale)
        self._positions = weights.get(f"{prefix}positions.weight")
        self._segments = weights.get(f"{prefix}segments.weight")
        self._embed_norm = weights.norm(f"{prefix}embed_norm", spec.norm) if spec.norm.affine else None
        self._project_in = weights.linear(f"{prefix}project_in")
        self._project_out = weights.linear(f"{prefix}project_out")
        self._norm = weights.norm(f"{prefix}norm", spec.norm)
        ropes = [getattr(layer.mixer, "positions", None) for layer in spec.layers]
        self._rope = next(
            (rope for rope in ropes if isinstance(rope, Rope) and rope.sections), None
        )  # all have the same
        self._tables = tables
        self._starts = {skip.start for skip in spec.skips}
        self._skips = collections.defaultdict(list)
        for skip in spec.skips:
            self._skips[skip.into].append(skip)

    @property
    def state_layouts(self) -> tuple[StateLayout | None, ...]:
        """What each layer keeps between steps; None for a layer that keeps nothing."""
        return tuple(_layout(block) for block in self.blocks)

    def __call__(self, batch: Batch, states: list[State | None]) -> torch.Tensor:
        """Hidden states (T, D) after the last norm; writes the step's keys and values into `states`, one per layer."""
        x, residual = self._embedded(batch), None
        if batch.axes is not None and self._rope is not None:
            cos_sin = rotate_by_axes(self._tables(self._rope), batch.axes, self._rope.sections)
            rows = torch.arange(len(cos_sin), device=cos_sin.device)
            batch = dataclasses.replace(batch, rotation=Rotation(cos_sin, rows))
        saved: dict[int, torch.Tensor] = {}
        for index, (block, state) in enumerate(zip(self.blocks, states, strict=True)):
            if index in self._starts:
                saved[index] = x.clone() if residual is None else x + residual
            for skip in self._skips.get(index, ()):
                stream = x if residual is None else x + residual
                x, residual = torch.lerp(stream, saved[skip.start], skip.weight), None
            x, residual = block(x, residual, batch, state)
        if residual is None:
            hidden = x if self._norm is None else self._norm(x)
        else:
            hidden = residual.add_(x) if self._norm is None else self._norm.add(x, residual)[0]
        return hidden if self._project_out is None else self._project_out(hidden)

    def _embedded(self, batch: Batch) -> torch.Tensor:
        """(T, D): what the first block sees."""
        x = self.embed(batch.token_ids)
        if batch.features is not None:
            x[batch.features.rows] = batch.features.values
        if self._project_in is not None:
            x = self._project_in(x)
        if self._segments is not None:
            x += embedding(batch.segments, self._segments)
        if self._positions is not None:
            x += embedding(batch.positions, self._positions)
        return x if self._embed_norm is None else self._embed_norm(x)


def _layout(block: Block) -> StateLayout | None:
    if block.mixer is not None:
        return block.mixer.layout
    cross = getattr(block, "cross", None)  # which not every form of a block has
    return None if cross is None else cross.layout
