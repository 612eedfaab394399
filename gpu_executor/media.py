"""Owns media as the engine sees it: an item of a prompt, what its tower reads, and where its features go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from gpu_executor.models.towers.tower import TiledTowerSpec

EMBEDDINGS = "embeddings"  # the tensor (rows, D) of an item that needs no tower


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MediaInput:
    """An item and the spans (start, length) of the prompt that its features stand for, in order."""

    modality: str
    digest: bytes  # of the item's content: equal digests have equal features
    spans: tuple[tuple[int, int], ...]
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of_arrays(
        cls, modality: str, digest: bytes, spans: Iterable[tuple[int, int]], arrays: Mapping[str, np.ndarray]
    ) -> MediaInput:
        """The item of numpy arrays, which are not copied."""
        tensors = {name: torch.from_numpy(np.require(array, requirements="CW")) for name, array in arrays.items()}
        return cls(modality, digest, tuple(spans), tensors)

    @property
    def start(self) -> int:
        """The first token of the prompt that has a feature."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """The token behind the last one that has a feature."""
        return sum(self.spans[-1])

    @property
    def num_features(self) -> int:
        return sum(length for _, length in self.spans)

    def first_row(self, start: int, end: int) -> int | None:
        """The first token in [start, end) that has a feature of this item; None if there is none."""
        for first, length in self.spans:
            if max(first, start) < min(first + length, end):
                return max(first, start)
        return None

    def rows(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens in [start, end) that have features, and which feature each has; both (n,) int64."""
        tokens, features, offset = [], [], 0
        for first, length in self.spans:
            low, high = max(first, start), min(first + length, end)
            if low < high:
                tokens.append(np.arange(low, high))
                features.append(np.arange(low, high) + (offset - first))
            offset += length
        none = np.zeros(0, np.int64)
        return np.concatenate([none, *tokens]), np.concatenate([none, *features])


def check_media(
    media: Iterable[MediaInput],
    num_prompt_tokens: int,
    *,
    modalities: tuple[str, ...],
    hidden_size: int,
    max_features: int,
) -> None:
    """Raises InvalidRequest for items that could hurt the engine: it trusts no frontend."""
    behind = 0
    for index, item in enumerate(media):
        if item.modality not in modalities:
            takes = " and ".join(modalities) or "no media"
            raise _unusable(index, f"is of modality {item.modality}; this model takes {takes}")
        if not item.spans or any(length < 1 for _, length in item.spans):
            raise _unusable(index, "has an empty span")
        for start, length in item.spans:
            if start < behind or start + length > num_prompt_tokens:
                raise _unusable(index, f"has the span {start} + {length}, which is out of order or outside the prompt")
            behind = start + length
        if item.num_features > max_features:
            problem = f"has {item.num_features:,} features; at most {max_features:,} are held (--encoder-cache-size)"
            raise _unusable(index, problem, ErrorReason.ERROR_REASON_MEDIA_TOO_LARGE)
        embeddings = item.tensors.get(EMBEDDINGS)
        if embeddings is not None:
            wanted = (item.num_features, hidden_size)
            if tuple(embeddings.shape) != wanted or not embeddings.is_floating_point():
                raise _unusable(index, f"has embeddings {list(embeddings.shape)}; {list(wanted)} numbers are needed")
            if not embeddings.isfinite().all():
                raise _unusable(index, "has embeddings that are not finite")


def check_cross_media(media: Sequence[MediaInput], tower: TiledTowerSpec, max_features: int) -> None:
    """The same for media that cross attention reads; its features are held all at once."""
    for index, item in enumerate(media):
        if item.num_features != 1:
            raise _unusable(index, f"stands for {item.num_features:,} tokens; each item is one token of this model")
        if not tower.num_tiles(item.tensors):
            raise _unusable(index, "has no tensors that this model's tower takes")
    num_items = len({item.digest for item in media})
    if (num_rows := num_items * tower.max_tiles * tower.tile_rows) > max_features:
        raise InvalidRequest(
            f"the prompt's {num_items} items have {num_rows:,} features; at most {max_features:,} are held "
            "(--encoder-cache-size)",
            ErrorReason.ERROR_REASON_MEDIA_TOO_LARGE,
        )


def check_positions(positions: np.ndarray, num_prompt_tokens: int, max_tokens: int, max_model_len: int) -> None:
    """Raises InvalidRequest for rotary positions (axes, prompt tokens) outside of what the model takes."""
    if positions.ndim != 2 or positions.shape[1] != num_prompt_tokens or positions.shape[0] not in (1, 3):
        raise InvalidRequest(
            f"positions have the shape {list(positions.shape)}; the prompt has {num_prompt_tokens:,} tokens"
        )
    least, most = int(positions.min()), int(positions.max()) + max(0, max_tokens - 1)
    if least < 0 or most >= max_model_len:
        raise InvalidRequest(f"positions go from {least:,} to {most:,}; the model takes 0 to {max_model_len - 1:,}")


def _unusable(
    index: int, problem: str, reason: ErrorReason = ErrorReason.ERROR_REASON_MEDIA_UNUSABLE
) -> InvalidRequest:
    return InvalidRequest(f"media item {index} {problem}", reason, fields=((f"media[{index}]", problem),))
