"""Owns the settings of media: what is taken, where it is decoded, how much is kept."""

from __future__ import annotations

import dataclasses

from preprocess.media.decoder import decode
from preprocess.media.decoder_pool import DecoderPool
from preprocess.media.limits import MediaLimits
from preprocess.media.preparer import FILE_CACHE_BYTES, ITEM_CACHE_BYTES, Fetch, MediaPreparer
from preprocess.processors.processor import Processor


@dataclasses.dataclass(frozen=True, slots=True)
class MediaSettings:
    """How a Preprocessor treats media."""

    limits: MediaLimits = MediaLimits()
    num_workers: int = 0  # processes that decode files; 0: this one does, for callers who trust their files
    fetch: Fetch | None = None  # without it, URLs are refused
    item_cache_bytes: int = ITEM_CACHE_BYTES  # for what processors made of media
    file_cache_bytes: int = FILE_CACHE_BYTES  # for files that clients may name by their digest

    def preparer(self, processor: Processor) -> MediaPreparer:
        """What makes items of media by these settings."""
        return MediaPreparer(
            processor,
            DecoderPool(self.num_workers, self.limits).decode if self.num_workers else decode,
            limits=self.limits,
            fetch=self.fetch,
            num_threads=self.num_workers,
            item_cache_bytes=self.item_cache_bytes,
            file_cache_bytes=self.file_cache_bytes,
        )
