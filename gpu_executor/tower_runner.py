"""Owns a tower by itself: a prompt's items in, the same items as rows of embeddings out. No engine, no text model."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forebay.errors import InvalidRequest
from forebay.parts import find_parts, with_parts
from forebay.v1.errors_pb2 import ErrorReason
from gpu_executor.media import EMBEDDINGS
from gpu_executor.model_info import read_model_config
from gpu_executor.models.loader import resolve_dtype
from gpu_executor.models.tower_loader import load_tower
from gpu_executor.models.towers.tower import Embed, Tower, TowerInput
from gpu_executor.startup import choose_device

_CACHE_BYTES = 256 << 20  # of rows, for pictures that come again


class TowerRunner:
    """Runs one tower, one call at a time. Threads may share one."""

    def __init__(self, tower: Tower, embed: Embed, device: torch.device, *, cache_bytes: int = _CACHE_BYTES) -> None:
        self._tower, self._embed, self._device = tower, embed, device
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()  # rows by the item's digest
        self._cache_bytes, self._num_cached_bytes = cache_bytes, 0

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: str,
        device: str,
        num_threads: int | None,
        hf_overrides: dict[str, Any] | None = None,
        download_dir: str | None = None,
    ) -> TowerRunner:
        """The tower of a checkpoint folder; raises as load_model, and NotOffered for a model without one."""
        place = choose_device(device)
        if place.type == "cpu":
            torch.set_num_threads(num_threads or len(os.sched_getaffinity(0)))
        config = read_model_config(folder, hf_overrides)
        parts = find_parts(config, download_dir=download_dir)
        config = with_parts(config, parts)
        dtype_of_tower = resolve_dtype(dtype, config, place, folder=folder)
        tower, embed = load_tower(folder, config, dtype=dtype_of_tower, device=place, parts=parts)
        return cls(tower, embed, place)

    def encode_prompt(self, encoded: Any) -> Any:
        """A preprocess.media_item.EncodedPrompt with each item's tensors replaced by `embeddings` (rows, D) float32.

        Raises InvalidRequest (MEDIA_UNUSABLE) for an item that the tower cannot read.
        """
        media = tuple(dataclasses.replace(placed, item=self._with_rows(placed.item)) for placed in encoded.media)
        return dataclasses.replace(encoded, media=media)

    def _with_rows(self, item: Any) -> Any:
        if EMBEDDINGS in item.tensors:
            return item
        with self._lock:
            rows = self._cache.get(item.digest)
            if rows is None:
                rows = self._rows(item)
                self._keep(item.digest, rows)
            else:
                self._cache.move_to_end(item.digest)
        return dataclasses.replace(item, tensors={EMBEDDINGS: rows})

    @torch.inference_mode()
    def _rows(self, item: Any) -> np.ndarray:
        tensors = {
            name: torch.from_numpy(np.require(array, requirements="CW")).to(self._device)
            for name, array in item.tensors.items()
        }
        try:
            (rows,) = self._tower([TowerInput(item.modality, tensors)], self._embed)
        except Exception as error:
            problem = f"an item of modality {item.modality} has tensors that the model cannot read"
            raise InvalidRequest(problem, ErrorReason.ERROR_REASON_MEDIA_UNUSABLE) from error
        return rows.float().cpu().numpy()

    def _keep(self, digest: bytes, rows: np.ndarray) -> None:
        self._cache[digest] = rows
        self._num_cached_bytes += rows.nbytes
        while self._num_cached_bytes > self._cache_bytes and len(self._cache) > 1:
            self._num_cached_bytes -= self._cache.popitem(last=False)[1].nbytes
