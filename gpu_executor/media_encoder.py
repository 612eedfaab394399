"""Owns the computing of features: a step's items through the model's tower, into the encoder cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence as SequenceOf

import torch

from forebay.errors import Aborted, ForebayError, InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from gpu_executor.encoder_cache import EncoderCache
from gpu_executor.media import EMBEDDINGS, MediaInput
from gpu_executor.models.decoder import Decoder
from gpu_executor.models.towers.tower import TowerInput

logger = logging.getLogger(__name__)


class MediaEncoder:
    """Runs a model's tower. What a client sends may be beyond the tower: that ends the client's request and nobody else's."""

    def __init__(self, model: Decoder, cache: EncoderCache, *, together: bool = True) -> None:
        """`together`: items of one call share the tower's products, whose bits then depend on each other's sizes."""
        self._model, self._cache, self._together = model, cache, together
        spec = model.spec
        self._num_features = spec.most_encoded if spec.reads_media else None  # of every item; None: as its tokens say

    @torch.inference_mode()
    def __call__(self, items: SequenceOf[MediaInput]) -> dict[bytes, ForebayError]:
        """Puts the items' features into the cache, where they are held; by digest, why an item has none."""
        inputs = [TowerInput(item.modality, self._on_device(item)) for item in items]
        computed: list[torch.Tensor | ForebayError] = []
        try:
            computed += self._encode(inputs) if self._together else map(self._encode_alone, inputs)
        except Exception:  # one of them is to blame: each by itself shows which
            computed = [self._encode_alone(found) for found in inputs]
        errors: dict[bytes, ForebayError] = {}
        for item, features in zip(items, computed, strict=True):
            checked = _checked(features, self._num_features or item.num_features)
            if isinstance(checked, ForebayError):
                errors[item.digest] = checked
            else:
                self._cache.put(item.digest, checked)
        return errors

    def _encode(self, inputs: list[TowerInput]) -> list[torch.Tensor]:
        """Features of each item: precomputed ones as they are, the tower's of all others in one call."""
        without = [found for found in inputs if EMBEDDINGS not in found.tensors]
        encoded = iter(self._model.encode_media(without) if without else ())
        dtype = self._model.dtype
        return [
            found.tensors[EMBEDDINGS].to(dtype) if EMBEDDINGS in found.tensors else next(encoded) for found in inputs
        ]

    def _encode_alone(self, found: TowerInput) -> torch.Tensor | ForebayError:
        try:
            return self._encode([found])[0]
        except Exception as error:
            shapes = {name: list(tensor.shape) for name, tensor in found.tensors.items()}
            logger.warning("an item of modality %s cannot be encoded: %s", found.modality, shapes, exc_info=error)
            return _unusable("has tensors that the model cannot read")

    def _on_device(self, item: MediaInput) -> dict[str, torch.Tensor]:
        device = self._model.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in item.tensors.items()}


def _checked(features: torch.Tensor | ForebayError, num_wanted: int) -> torch.Tensor | ForebayError:
    if isinstance(features, ForebayError):
        return features
    if len(features) != num_wanted:
        return _unusable(f"gives {len(features):,} features where the prompt has {num_wanted:,} tokens")
    if not features.isfinite().all():
        return Aborted("the model gave values that are not numbers")
    return features


def _unusable(problem: str) -> InvalidRequest:
    return InvalidRequest(f"a media item {problem}", ErrorReason.ERROR_REASON_MEDIA_UNUSABLE)
