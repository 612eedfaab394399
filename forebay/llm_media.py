"""Owns how media that the preprocessor placed in a prompt reaches the engine of the same process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_executor.media import MediaInput
    from preprocess.media_item import PlacedItem


def media_inputs(placed: Iterable[PlacedItem]) -> list[MediaInput]:
    """The engine's view of the items; their arrays are not copied."""
    from gpu_executor.media import MediaInput

    return [
        MediaInput.of_arrays(part.item.modality, part.item.digest, part.spans, part.item.tensors) for part in placed
    ]
