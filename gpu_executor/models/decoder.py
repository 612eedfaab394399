"""Owns the model that a step runs: a stack with a head, and for an encoder-decoder the encoder's stack beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpu_executor.batch import Batch, CrossBatch
from gpu_executor.layers.linear import Linear
from gpu_executor.mixers.state import State, StateLayout
from gpu_executor.models.heads import ClassifierHead
from gpu_executor.models.names import ENCODER, TOWER
from gpu_executor.models.rope import RopeTables
from gpu_executor.models.spec import ModelSpec
from gpu_executor.models.stack import Stack
from gpu_executor.models.towers.assembly import assemble
from gpu_executor.models.towers.tower import TowerInput
from gpu_executor.models.weights import Weights
from kernels.batch_invariance import elementwise


class Decoder:
    """A model for inference: call it with a batch for hidden states, then ask for the logits of the rows you need.

    It is no nn.Module: a step calls hundreds of layers, and plain attributes cost a fraction of a module's dispatch. What
    works on weights works on `weights`, by canonical name.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, dtype: torch.dtype, device: torch.device) -> None:
        self.spec, self.weights, self.dtype, self.device = spec, weights, dtype, device
        decoder = spec.decoder
        self._stack = Stack(decoder, weights, RopeTables(spec.max_model_len, device, spec.long_from))
        self._encoder = None
        if spec.encoder is not None:
            self._encoder = Stack(spec.encoder, weights, RopeTables(spec.max_encoder_len, device), prefix=ENCODER)
        self._head = None
        if spec.has_head:
            head = self._stack.embed.weight if decoder.tied else weights.get("head.weight")
            self._head = Linear(head, weights.get("head.bias"))
        self.tower = None
        if spec.tower is not None:
            self.tower = assemble(spec.tower, weights.below(TOWER), device)
        self.classify = None if spec.classifier is None else ClassifierHead(spec.classifier, weights)
        self._masked_ids = torch.tensor(decoder.masked_ids, device=device) if decoder.masked_ids else None

    @property
    def state_layouts(self) -> tuple[StateLayout | None, ...]:
        """What each layer keeps between steps; None for a layer that keeps nothing."""
        return self._stack.state_layouts

    def __call__(self, batch: Batch, states: list[State | None]) -> torch.Tensor:
        """Hidden states (T, D) after the last norm; writes the step's keys and values into `states`, one per layer."""
        cross = batch.cross
        if cross is not None and cross.slot_mapping is not None:
            encoded = cross.encoded if cross.encoder is None else self._encode(cross.encoder, cross)
            for block, state in zip(self._stack.blocks, states, strict=True):
                if block.cross is not None:
                    block.cross.remember(encoded, cross.slot_mapping, state)
        return self._stack(batch, states)

    def _encode(self, inputs: Batch, cross: CrossBatch) -> torch.Tensor:
        """The encoder's output (T', D) of `inputs`.

        Its own keys and values live as long as this call, in one cache that its layers use one after the other.
        """
        assert self._encoder is not None
        scratch = {
            layout: layout.allocate(cross.num_encoder_blocks, cross.block_size, 0, dtype=self.dtype, device=self.device)
            for layout in set(self._encoder.state_layouts)
        }
        return self._encoder(inputs, [scratch[layout] for layout in self._encoder.state_layouts])

    @torch.inference_mode()
    def encode_media(self, items: Sequence[TowerInput]) -> list[torch.Tensor]:
        """Features (n, D) of each item, which take the place of token embeddings, or which cross attention reads."""
        assert self.tower is not None
        return self.tower(items, self._stack.embed)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (N, D) -> (N, V) float32, the caller's to change."""
        assert self._head is not None, "this model was loaded without its head"
        decoder = self.spec.decoder
        logits = self._head(hidden).float()
        if decoder.logit_scale != 1.0:
            logits *= decoder.logit_scale
        if decoder.logit_softcap is not None:
            logits = elementwise(torch.tanh_, logits.div_(decoder.logit_softcap)).mul_(decoder.logit_softcap)
        if self._masked_ids is not None:
            logits[:, self._masked_ids] = -torch.inf
        return logits
