"""Owns videos out of files: a few frames of them, evenly spread, upright, in RGB."""

from __future__ import annotations

import numpy as np

from forebay.errors import InvalidRequest
from preprocess.media.containers import opened, stream_of
from preprocess.media.decoded import Video
from preprocess.media.formats import FileFormat
from preprocess.media.limits import MediaLimits, too_large, undecodable

NUM_FRAMES = 32  # what vLLM takes of a video unless told otherwise


def decode_video(data: bytes, format: FileFormat, limits: MediaLimits, num_frames: int = NUM_FRAMES) -> Video:
    """`num_frames` of a file's frames, or all if it has fewer; frame i of n is number floor(i (total - 1) / (n - 1)).

    Raises InvalidRequest: MEDIA_TOO_LARGE from the headers, or MEDIA_DECODE. Frames in between are decoded where others need
    them, and never converted.
    """
    try:
        total, seconds = _measured(data, format, limits)
        wanted = np.linspace(0, total - 1, min(total, num_frames), dtype=int).tolist()
        frames = _frames(data, format, limits, wanted)
    except InvalidRequest:
        raise
    except MemoryError:
        raise too_large("the video takes more memory than there is for one") from None
    except Exception:  # see image.py
        raise undecodable(f"the {format.name} file is damaged or not complete") from None
    return Video(frames, min(len(frames) / seconds, 1_000.0))


def _measured(data: bytes, format: FileFormat, limits: MediaLimits) -> tuple[int, float]:
    """How many frames there are and how many seconds they take, from the packets alone."""
    with opened(data, format) as container:
        stream = stream_of(container, "video")
        width, height = stream.codec_context.width, stream.codec_context.height
        limits.check_picture(width, height)
        declared = container.duration / 1_000_000 if container.duration else 0.0  # the file's own word, in microseconds
        limits.check_duration("video", declared)
        total = sum(packet.size > 0 for packet in container.demux(stream))
        if not total:
            raise undecodable("the file has no frames in it")
        limits.check_frames(min(total, NUM_FRAMES), width, height)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        seconds = total / rate if rate > 0 else max(declared, 1e-3)
        limits.check_duration("video", seconds)
        return total, seconds


def _frames(data: bytes, format: FileFormat, limits: MediaLimits, wanted: list[int]) -> np.ndarray:
    """(frames, H, W, 3) uint8 of the frames with these numbers, ascending."""
    found: np.ndarray | None = None
    with opened(data, format) as container:
        decoded = enumerate(container.decode(stream_of(container, "video")))
        for index, wanted_number in enumerate(wanted):
            frame = next(frame for number, frame in decoded if number == wanted_number)
            limits.check_picture(frame.width, frame.height)  # a stream may grow on its way
            pixels = frame.to_ndarray(format="rgb24")
            if frame.rotation:
                pixels = np.rot90(pixels, frame.rotation // 90)
            if found is None:
                found = np.empty((len(wanted), *pixels.shape), np.uint8)
            if pixels.shape != found.shape[1:]:
                raise undecodable("the video's frames are not of one size")
            found[index] = pixels
    return found
