"""Owns the settings of media: what is taken, where it is decoded, how much is kept."""

from __future__ import annotations

import dataclasses

from preprocess.media.decoder import decode
from preprocess.media.limits import MediaLimits
from preprocess.media.preparer import FILE_CACHE_BYTES, ITEM_CACHE_BYTES, MediaPreparer
from preprocess.processors.processor import Processor


@dataclasses.dataclass(frozen=True, slots=True)
class MediaSettings:
    """How a Preprocessor treats media."""

    limits: MediaLimits = MediaLimits()
    item_cache_bytes: int = ITEM_CACHE_BYTES  # for what processors made of media
    file_cache_bytes: int = FILE_CACHE_BYTES  # for files that clients may name by their digest

    def preparer(self, processor: Processor) -> MediaPreparer:
        """What makes items of media by these settings."""
        return MediaPreparer(
            processor,
            decode,
            limits=self.limits,
            item_cache_bytes=self.item_cache_bytes,
            file_cache_bytes=self.file_cache_bytes,
        )
