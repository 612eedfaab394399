"""Owns videos out of files: a few frames of them, evenly spread, upright, in RGB."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from forebay.errors import InvalidRequest
from preprocess.media.containers import opened, stream_of
from preprocess.media.decoded import Video
from preprocess.media.formats import FileFormat
from preprocess.media.limits import ALL_FRAMES, MediaLimits, too_large, undecodable

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_MAX_RATE = 1_000.0
# Codecs whose frames a decoder can begin with at any packet that says so.
_SEEKABLE = {"h264", "hevc", "vp8", "vp9", "libvpx-vp9", "av1", "libdav1d", "libaom-av1", "mpeg4"}


def decode_video(data: bytes, format: FileFormat, limits: MediaLimits) -> Video:
    """`limits.sampled_frames` of a file's frames, or all if it has fewer; frame i of n is number floor(i (total - 1) / (n - 1)).

    Raises InvalidRequest: MEDIA_TOO_LARGE from the headers, or MEDIA_DECODE. Frames in between are decoded where others need
    them, and never converted.
    """
    try:
        timeline = _timeline(data, format, limits)
        count = _num_sampled(timeline.total, limits)
        wanted = np.linspace(0, timeline.total - 1, count, dtype=int).tolist()
        frames = _pixels(_sought(data, format, timeline, wanted), count, limits) if timeline.keys else None
        if frames is None:
            frames = _pixels(_in_order(data, format, wanted), count, limits)
    except InvalidRequest:
        raise
    except MemoryError:
        raise too_large("the video takes more memory than there is for one") from None
    except Exception:  # see image.py
        raise undecodable(f"the {format.name} file is damaged or not complete") from None
    if frames is None:
        raise undecodable(f"the {format.name} file is damaged or not complete")
    return Video(frames, min(count / timeline.seconds, _MAX_RATE))


@dataclasses.dataclass(frozen=True, slots=True)
class _Timeline:
    """What the packets of a video tell: how many frames, how long, and when each and those to begin with are shown."""

    total: int
    seconds: float
    times: list[int]  # ascending, in the stream's units; empty where packets do not say it
    keys: list[int]  # of frames that decoding can begin with; empty where it begins at the beginning


def _num_sampled(total: int, limits: MediaLimits) -> int:
    return total if limits.sampled_frames == ALL_FRAMES else min(total, limits.sampled_frames)


def _timeline(data: bytes, format: FileFormat, limits: MediaLimits) -> _Timeline:
    with opened(data, format) as container:
        stream = stream_of(container, "video")
        width, height = stream.codec_context.width, stream.codec_context.height
        limits.check_picture(width, height)
        declared = container.duration / 1_000_000 if container.duration else 0.0  # the file's own word, in microseconds
        limits.check_duration("video", declared)
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        if not packets:
            raise undecodable("the file has no frames in it")
        limits.check_frames(_num_sampled(len(packets), limits), width, height)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        seconds = len(packets) / rate if rate > 0 else max(declared, 1 / _MAX_RATE)
        limits.check_duration("video", seconds)
        times = sorted({time for time, _ in packets if time is not None})
        if len(times) != len(packets) or stream.codec_context.name not in _SEEKABLE:
            return _Timeline(len(packets), seconds, [], [])
        return _Timeline(len(packets), seconds, times, sorted(time for time, is_key in packets if is_key))


def _in_order(data: bytes, format: FileFormat, wanted: list[int]) -> Iterator[VideoFrame]:
    """The frames with these numbers, ascending, out of all that are decoded."""
    with opened(data, format) as container:
        decoded = enumerate(container.decode(stream_of(container, "video")))
        for number in wanted:
            yield next((frame for found, frame in decoded if found == number), None)


def _sought(data: bytes, format: FileFormat, timeline: _Timeline, wanted: list[int]) -> Iterator[VideoFrame]:
    """The same, where decoding begins anew at the last key before a frame if that is ahead of what was decoded."""
    with opened(data, format) as container:
        stream = stream_of(container, "video")
        decoded, reached = container.decode(stream), timeline.times[0] - 1
        for number in wanted:
            time = timeline.times[number]
            before = bisect.bisect_right(timeline.keys, time)
            if before and timeline.keys[before - 1] > reached:
                container.seek(timeline.keys[before - 1], stream=stream)
                decoded = container.decode(stream)
            frame = next((frame for frame in decoded if frame.pts is None or frame.pts >= time), None)
            reached = time
            yield frame if frame is not None and frame.pts == time else None  # else the file's own word was wrong


def _pixels(frames: Iterator[VideoFrame | None], count: int, limits: MediaLimits) -> np.ndarray | None:
    """(count, H, W, 3) uint8; None where a frame is missing."""
    found: np.ndarray | None = None
    for index, frame in enumerate(frames):
        if frame is None:
            return None
        limits.check_picture(frame.width, frame.height)  # a stream may grow on its way
        pixels = frame.to_ndarray(format="rgb24")
        if frame.rotation:
            pixels = np.rot90(pixels, frame.rotation // 90)
        if found is None:
            found = np.empty((count, *pixels.shape), np.uint8)
        if pixels.shape != found.shape[1:]:
            raise undecodable("the video's frames are not of one size")
        found[index] = pixels
    return found
