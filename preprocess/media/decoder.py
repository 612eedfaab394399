"""Owns decoding of files of every kind. Everything that reads bytes that people sent is below this one call."""

from __future__ import annotations

from preprocess.media.audio import decode_audio
from preprocess.media.decoded import DecodedMedia
from preprocess.media.formats import sniff
from preprocess.media.image import decode_image
from preprocess.media.limits import MediaLimits
from preprocess.media.video import decode_video


def decode(data: bytes, modality: str, limits: MediaLimits, sample_rate: int | None) -> DecodedMedia:
    """What a file holds; sound at `sample_rate`. Raises InvalidRequest (MEDIA_DECODE, MEDIA_TOO_LARGE, MEDIA_UNUSABLE)."""
    limits.check_file(len(data))
    format = sniff(data, modality)
    if modality == "image":
        return decode_image(data, format, limits)
    if modality == "video":
        return decode_video(data, format, limits)
    return decode_audio(data, format, limits, sample_rate)
