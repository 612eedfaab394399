"""Owns what media becomes for a model: an item's tensors under their digest, and a prompt with items in their places."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from forebay.errors import InvalidRequest
from forebay.media_packing import pack
from forebay.v1.errors_pb2 import ErrorReason

EMBEDDINGS = "embeddings"  # the name of the tensor of an item that needs no tower: (rows, D)


@dataclasses.dataclass(frozen=True, eq=False)
class MediaItem:
    """One image, video or clip as a processor made it.

    `tensors` is what the executor's tower reads, `num_features` how many rows it makes of them. `facts` is for the processor
    that made the item: what it has to know when it expands a prompt, such as a grid.
    """

    modality: str
    tensors: Mapping[str, np.ndarray]
    num_features: int
    facts: Any = None

    @cached_property
    def digest(self) -> bytes:
        """What tells the item from others: equal digests have equal features. See forebay.media_packing."""
        return pack(self.modality, self.tensors).digest


@dataclasses.dataclass(frozen=True, slots=True)
class PlacedItem:
    """An item and the spans (start, length) of the prompt's tokens that its features stand for, in order.

    The lengths sum up to the item's num_features.
    """

    item: MediaItem
    spans: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """A prompt as an executor takes it.

    `positions` (axes, tokens) int64 is set where a token's rotary position is not its index: one axis where items share
    positions, three (time, height, width) for M-RoPE. Tokens that follow the prompt go on at the largest one + 1.
    """

    token_ids: list[int]
    media: tuple[PlacedItem, ...] = ()
    positions: np.ndarray | None = None

    def end(self, max_tokens: int | None) -> EncodedPrompt:
        """The last `max_tokens` tokens, or all; raises InvalidRequest (TOO_LONG) where media would lose its place."""
        if max_tokens is None or len(self.token_ids) <= max_tokens:
            return self
        if self.media:
            raise InvalidRequest(
                f"the prompt has {len(self.token_ids):,} tokens; one with media cannot be cut to {max_tokens:,}",
                ErrorReason.ERROR_REASON_TOO_LONG,
            )
        return EncodedPrompt(self.token_ids[-max_tokens:])
