"""Owns decoded media <-> a header and bytes: how it comes out of the process that decodes it.

That process has read bytes of strangers, so nothing that it says is believed: a header is data, never code, and sizes are
checked against the bytes and against the limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as PilImages
from PIL import ImageMode

from preprocess.media.decoded import Audio, DecodedMedia, Image, Video
from preprocess.media.image import MODES
from preprocess.media.limits import MediaLimits
from preprocess.media.resampling import MAX_RATE, MIN_RATE

Header = dict[str, Any]


def pack(media: DecodedMedia) -> tuple[Header, bytes | memoryview]:
    """The header, which JSON can hold, and the bytes."""
    if isinstance(media, Video):
        header = {"shape": media.frames.shape, "frames_per_second": media.frames_per_second}
        return header, memoryview(np.ascontiguousarray(media.frames)).cast("B")
    if isinstance(media, Audio):
        samples = np.ascontiguousarray(media.samples, "<f4")
        return {"rate": media.sample_rate}, memoryview(samples).cast("B")
    picture = media.pixels
    header = {"mode": picture.mode, "size": picture.size}
    if picture.mode in ("P", "PA"):
        rawmode, colours = picture.palette.getdata()
        header["palette"] = [rawmode, bytes(colours).hex()]
    transparency = picture.info.get("transparency")
    if isinstance(transparency, bytes):
        header["transparency"] = transparency.hex()
    elif isinstance(transparency, int | tuple):
        header["transparency"] = transparency
    return header, picture.tobytes()


def unpack(header: Header, data: bytes | bytearray, modality: str, limits: MediaLimits) -> DecodedMedia:
    """What `pack` was given. Raises ValueError, KeyError or TypeError for what it did not give, InvalidRequest over limits."""
    if modality == "video":
        return _video(header, data, limits)
    if modality == "audio":
        rate = _integers([header["rate"]])[0]
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ValueError("no rate of sound")
        samples = np.frombuffer(data, "<f4").astype(np.float32, copy=False)
        if not len(samples) or not np.isfinite(samples).all():
            raise ValueError("no sound")
        limits.check_duration("audio", len(samples) / rate - 1)  # a filter rounds up
        return Audio(samples, rate)
    return _image(header, data, limits)


def _video(header: Header, data: bytes | bytearray, limits: MediaLimits) -> Video:
    shape, rate = _integers(header["shape"]), float(header["frames_per_second"])
    if len(shape) != 4 or shape[3] != 3 or math.prod(shape) != len(data) or not 0 < rate <= 1_000:
        raise ValueError("no video")
    limits.check_frames(shape[0], shape[2], shape[1])
    return Video(np.frombuffer(data, np.uint8).reshape(shape), rate)


def _image(header: Header, data: bytes | bytearray, limits: MediaLimits) -> Image:
    mode, (width, height) = header["mode"], _integers(header["size"])
    if mode not in MODES:
        raise ValueError("no mode of pictures")
    limits.check_picture(width, height)
    if len(data) != _num_bytes(mode, width, height):
        raise ValueError("bytes and size differ")
    picture = PilImages.frombytes(mode, (width, height), bytes(data))
    if mode in ("P", "PA"):
        rawmode, colours = header["palette"]
        if rawmode not in ("RGB", "RGBA"):
            raise ValueError("no palette")
        picture.putpalette(bytes.fromhex(colours), rawmode)
    transparency = header.get("transparency")
    if isinstance(transparency, str):
        transparency = bytes.fromhex(transparency)
    if transparency is not None:
        single = transparency if isinstance(transparency, int | bytes) else tuple(_integers(transparency))
        picture.info["transparency"] = single
    return Image(picture)


def _num_bytes(mode: str, width: int, height: int) -> int:
    if mode == "1":
        return (width + 7) // 8 * height
    return width * height * len(ImageMode.getmode(mode).bands) * np.dtype(ImageMode.getmode(mode).typestr).itemsize


def _integers(values: Sequence[Any]) -> list[int]:
    """Whole numbers above -1."""
    if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
        raise ValueError("no whole numbers")
    return list(values)
