"""Owns the decoder: one stack of blocks for every architecture, built from a spec and weights."""

from __future__ import annotations

import collections

import torch

from gpu_executor.batch import Batch
from gpu_executor.layers.linear import Linear
from gpu_executor.mixers.state import State, StateLayout
from gpu_executor.models.build import build_block
from gpu_executor.models.rope import RopeTables
from gpu_executor.models.spec import ModelSpec
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
        self.blocks = [build_block(decoder, index, weights, tables) for index in range(len(decoder.layers))]
        self._embed, self._positions = weights.get("embed.weight"), weights.get("positions.weight")
        # The scale is rounded to the number format, as the models' own code does.
        self._embed_scale = torch.tensor(decoder.embed_scale, dtype=dtype).item()
        self._embed_norm = weights.norm("embed_norm", decoder.norm) if decoder.norm.affine else None
        self._project_in, self._project_out = weights.linear("project_in"), weights.linear("project_out")
        self._norm = weights.norm("norm", decoder.norm)
        head = self._embed if decoder.tied else weights.get("head.weight")
        self._head = Linear(head, weights.get("head.bias"))
        self._masked_ids = torch.tensor(decoder.masked_ids, device=device) if decoder.masked_ids else None
        self._starts = {skip.start for skip in decoder.skips}
        self._skips = collections.defaultdict(list)
        for skip in decoder.skips:
            self._skips[skip.into].append(skip)

    @property
    def state_layouts(self) -> tuple[StateLayout | None, ...]:
        """What each layer keeps between steps; None for a layer that keeps nothing."""
        return tuple(None if block.mixer is None else block.mixer.layout for block in self.blocks)

    def __call__(self, batch: Batch, states: list[State | None]) -> torch.Tensor:
        """Hidden states (T, D) after the last norm; writes the step's keys and values into `states`, one per layer."""
        x, residual = self._embedded(batch), None
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
        x = embedding(batch.token_ids, self._embed)
        if self._embed_scale != 1.0:
            x *= self._embed_scale
        if self._project_in is not None:
            x = self._project_in(x)
        if self._positions is not None:
            x += embedding(batch.positions, self._positions)
        return x if self._embed_norm is None else self._embed_norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (N, D) -> (N, V) float32, the caller's to change."""
        decoder = self.spec.decoder
        logits = self._head(hidden).float()
        if decoder.logit_scale != 1.0:
            logits *= decoder.logit_scale
        if decoder.logit_softcap is not None:
            logits = logits.div_(decoder.logit_softcap).tanh_().mul_(decoder.logit_softcap)
        if self._masked_ids is not None:
            logits[:, self._masked_ids] = -torch.inf
        return logits
