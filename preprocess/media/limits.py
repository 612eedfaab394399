"""Owns how much media a prompt can have, and how large each item can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason

MODALITIES = ("image", "video", "audio")
DEFAULT_ITEMS = {"image": 16, "video": 4, "audio": 16}
SAMPLED_FRAMES = 32  # what vLLM takes of a video unless told otherwise
ALL_FRAMES = -1


@dataclasses.dataclass(frozen=True, slots=True)
class MediaLimits:
    """What is more is refused, from headers where they tell, before anything is decoded."""

    items: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: dict(DEFAULT_ITEMS)
    )  # of each modality, in a prompt
    file_bytes: int = 64 << 20  # of an encoded file
    image_pixels: int = 50_000_000  # of a picture; 8,000 x 6,000 are 48 million
    video_pixels: int = 1 << 28  # of all frames that a model sees: 32 of 3,840 x 2,160
    sampled_frames: int = SAMPLED_FRAMES  # that a model sees of a video's file, evenly spread; ALL_FRAMES: every one
    video_frames: int = 1_024  # that a model sees of any video
    video_seconds: float = 3_600.0
    audio_seconds: float = 1_800.0
    audio_samples: int = 90_000_000  # of a channel, as the file has them: 1,800 s at 48 kHz are 86 million

    def check_count(self, modality: str, count: int) -> None:
        """Raises InvalidRequest (MEDIA_TOO_LARGE) if a prompt cannot have so many items."""
        limit = self.items.get(modality, 0)
        if count > limit:
            raise too_large(f"the prompt has {count:,} {modality} items; at most {limit:,} are taken")

    def check_file(self, num_bytes: int) -> None:
        """Raises InvalidRequest (MEDIA_TOO_LARGE) if a file cannot be so long."""
        if num_bytes > self.file_bytes:
            raise too_large(f"the file has {num_bytes:,} bytes; at most {self.file_bytes:,} are taken")

    def check_picture(self, width: int, height: int) -> None:
        """Raises InvalidRequest (MEDIA_TOO_LARGE) if a picture cannot be of this size."""
        if width * height > self.image_pixels:
            raise too_large(f"the picture has {width:,} x {height:,} pixels; at most {self.image_pixels:,} are taken")

    def check_frames(self, count: int, width: int, height: int) -> None:
        """The same for the frames of a video that a model is to see."""
        if count > self.video_frames:
            raise too_large(f"the video has {count:,} frames; at most {self.video_frames:,} are taken")
        if count * width * height > self.video_pixels:
            raise too_large(
                f"{count:,} frames of {width:,} x {height:,} pixels are more than the {self.video_pixels:,} that are taken"
            )

    def check_duration(self, modality: str, seconds: float) -> None:
        """Raises InvalidRequest (MEDIA_TOO_LARGE) if sound or a video cannot be so long."""
        limit = self.video_seconds if modality == "video" else self.audio_seconds
        if seconds > limit:
            raise too_large(f"the {modality} has {seconds:,.1f} s; at most {limit:,g} are taken")


def parse_items(text: str) -> dict[str, int]:
    """The items of each modality that "image=4,video=1" allows in a prompt; what is not named keeps its default.

    Raises ValueError, naming the part that is wrong.
    """
    items = dict(DEFAULT_ITEMS)
    for part in filter(None, (part.strip() for part in text.split(","))):
        modality, _, count = part.partition("=")
        if modality not in MODALITIES or not count.isascii() or not count.isdecimal():
            raise ValueError(f"{part!r} is not {'|'.join(MODALITIES)}=NUMBER")
        items[modality] = int(count)
    return items


def parse_io(given: Mapping[str, Any]) -> int:
    """How many frames of an encoded video are taken by {"video": {"num_frames": 40}}, vLLM's way to say it.

    Raises ValueError, naming the key that is wrong: nothing else about decoding can be chosen.
    """
    if unknown := given.keys() - {"video"}:
        raise ValueError(f"it has no {min(map(str, unknown))!r}; there is video")
    options = given.get("video", {})
    if not isinstance(options, Mapping):
        raise ValueError(f"video is {options!r}; it must be an object")
    if unknown := options.keys() - {"num_frames"}:
        raise ValueError(f"video has no {min(map(str, unknown))!r}; there is num_frames")
    count, most = options.get("num_frames", SAMPLED_FRAMES), MediaLimits().video_frames
    if type(count) is not int or (count != ALL_FRAMES and not 1 <= count <= most):
        raise ValueError(f"video.num_frames is {count!r}; it must be 1 to {most:,}, or {ALL_FRAMES} for all")
    return count


def too_large(message: str) -> InvalidRequest:
    """The error for media over a limit."""
    return InvalidRequest(message, ErrorReason.ERROR_REASON_MEDIA_TOO_LARGE)


def undecodable(message: str) -> InvalidRequest:
    """The error for media that is not what it should be."""
    return InvalidRequest(message, ErrorReason.ERROR_REASON_MEDIA_DECODE)


def unusable(message: str) -> InvalidRequest:
    """The error for media of a kind, shape or value that is not taken."""
    return InvalidRequest(message, ErrorReason.ERROR_REASON_MEDIA_UNUSABLE)
