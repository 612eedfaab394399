"""Owns the forms that media has once it is decoded: what a processor starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A picture, upright, in the mode that its file has."""

    pixels: PilImage

    @property
    def modality(self) -> str:
        return "image"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Video:
    """The frames that a model is to see, in order."""

    frames: np.ndarray  # (frames, height, width, 3) uint8
    frames_per_second: float  # of these frames

    @property
    def modality(self) -> str:
        return "video"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """One channel of sound at the processor's sample rate."""

    samples: np.ndarray  # (samples,) float32, in [-1, 1]
    sample_rate: int  # per second

    @property
    def modality(self) -> str:
        return "audio"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """What a client computed itself: rows that stand in place of a tower's output, for one item or several of a kind.

    `extras` is what a model needs beside them, under vLLM's names: image_grid_thw, video_grid_thw (n, 3), image_sizes
    (n, 2) as (width, height).
    """

    modality: str
    values: tuple[np.ndarray, ...]  # float32: (rows, D) of an item each, or one array (items, rows, D), as it was given
    extras: Mapping[str, np.ndarray]  # int64


DecodedMedia = Image | Video | Audio
