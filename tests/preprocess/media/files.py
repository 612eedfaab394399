"""Encoded files of every kind that is read, made on the spot."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import Any

import av
import numpy as np
import soundfile
from PIL import Image, features

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason

PICTURES = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(["AVIF"] if features.check("avif") else []))
# (container, codec): what a video is encoded in.
VIDEOS = (("mp4", "mpeg4"), ("mp4", "libx264"), ("mov", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"))
# (kind, subtype) of libsndfile.
SOUNDS = (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"))
# (container, codec): sound that only FFmpeg reads.
FFMPEG_SOUNDS = (("adts", "aac"), ("mp4", "aac"), ("webm", "libopus"))


def reason_of(error: InvalidRequest) -> str:
    """The reason's name, without its prefix."""
    return ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")


def pixels(height: int = 24, width: int = 32) -> np.ndarray:
    """(height, width, 3) uint8, no two corners alike, and noise that leaves a file its length."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[: height // 2, : width // 2] = (250, 10, 10)
    noise[height // 2 :, width // 2 :] = (10, 10, 250)
    return noise


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def picture_file(kind: str) -> bytes:
    """The pixels above as a file."""
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}.get(kind, {})
    return saved(Image.fromarray(pixels()), kind, **options)


def animation(kind: str, colours: list[tuple[int, int, int]]) -> bytes:
    """A picture that moves: one plain frame of each colour."""
    frames = [Image.new("RGB", (16, 12), colour) for colour in colours]
    options = {"lossless": True} if kind == "WEBP" else {}
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)


def png_header(width: int, height: int) -> bytes:
    """A PNG of this size whose pixels are a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def chunk_of_text(size: int) -> bytes:
    """A PNG with a compressed note of this length."""
    file = picture_file("PNG")
    note = b"note\0\0" + zlib.compress(b"\0" * size)
    chunk = struct.pack(">I", len(note)) + b"zTXt" + note + struct.pack(">I", zlib.crc32(b"zTXt" + note))
    return file[:33] + chunk + file[33:]  # behind IHDR


@functools.cache
def video_file(
    container: str = "mp4", codec: str = "mpeg4", num_frames: int = 10, rate: int = 10, key_every: int = 12
) -> bytes:
    """A video whose frame i is grey of the value 20 i (modulo 240), with a key frame at least every so many."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = key_every
        for index in range(num_frames):
            frame = np.full((48, 64, 3), 20 * index % 240, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def tone(seconds: float = 0.5, rate: int = 48_000) -> np.ndarray:
    """(samples, 2) float32: a tone on the left, silence on the right."""
    time = np.arange(int(seconds * rate)) / rate
    return np.stack([np.sin(2 * np.pi * 440 * time), np.zeros_like(time)], axis=1).astype(np.float32)


@functools.cache
def sound_file(kind: str = "WAV", subtype: str = "PCM_16", rate: int = 48_000) -> bytes:
    """The tone above as a file."""
    file = io.BytesIO()
    soundfile.write(file, tone(rate=rate), rate, format=kind, subtype=subtype)
    return file.getvalue()


@functools.cache
def ffmpeg_sound_file(container: str, codec: str) -> bytes:
    """The tone above as a file of FFmpeg."""
    file, samples, block = io.BytesIO(), tone().T, 960
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000, layout="stereo")
        fifo = av.AudioFifo()
        for start in range(0, samples.shape[1], block):
            part = np.ascontiguousarray(samples[:, start : start + block])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = 48_000, start
            fifo.write(frame)
        size = stream.codec_context.frame_size or 1024
        for frame in fifo.read_many(size, partial=False):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()
