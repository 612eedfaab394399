"""Owns what FFmpeg is allowed to read: the one demuxer that a file's first bytes name, and well-known codecs in it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from preprocess.media.formats import FileFormat
from preprocess.media.limits import undecodable, unusable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream

CODECS = {
    "video": {
        "h264", "hevc", "vp8", "vp9", "libvpx-vp9", "av1", "libdav1d", "libaom-av1", "mpeg4", "mpeg2video", "mjpeg", "gif",
        "rawvideo",
    },
    "audio": {"aac", "mp3", "mp3float", "opus", "libopus", "vorbis", "libvorbis", "flac", "alac", "pcm_s16le", "pcm_f32le"},
}  # fmt: skip


def opened(data: bytes, format: FileFormat) -> InputContainer:
    """The file's container; raises what PyAV raises for one that it cannot read."""
    import av

    return av.open(io.BytesIO(data), format=format.ffmpeg, metadata_errors="replace")


def stream_of(container: InputContainer, kind: str) -> Stream:
    """The first stream of video or audio; raises InvalidRequest if there is none, or its codec is not one that is read."""
    stream = next(iter(getattr(container.streams, kind)), None)
    if stream is None:
        raise undecodable(f"the file has no {kind} in it")
    if stream.codec_context is None or stream.codec_context.name not in CODECS[kind]:
        raise unusable(f"the file's {kind} is in a codec that is not read")
    stream.thread_count = 1  # the machine's cores belong to all requests
    return stream
