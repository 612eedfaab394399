"""Files are decoded in processes of their own: equal to decoding here, and what breaks one is one request's affair."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImages

from forebay.errors import InvalidRequest
from preprocess.media.decoded import DecodedMedia
from preprocess.media.decoder import decode
from preprocess.media.decoder_pool import DecoderPool
from preprocess.media.limits import MediaLimits
from tests.preprocess.media.files import (
    PICTURES,
    SOUNDS,
    VIDEOS,
    picture_file,
    pixels,
    png_header,
    reason_of,
    saved,
    sound_file,
    video_file,
)

LIMITS = MediaLimits()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1, LIMITS)
    yield pool
    pool.close()


def refused(pool: DecoderPool, data: bytes, modality: str = "image") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        pool.decode(data, modality, LIMITS, 16_000)
    return raised.value


def content(media: DecodedMedia) -> tuple[Any, ...]:
    """All that there is to say about it."""
    if media.modality == "image":
        palette = media.pixels.getpalette() if media.pixels.mode == "P" else None
        transparency = media.pixels.info.get("transparency")
        return media.pixels.mode, media.pixels.size, media.pixels.tobytes(), palette, transparency
    if media.modality == "video":
        return media.frames.shape, media.frames.tobytes(), media.frames_per_second
    return media.samples.tobytes(), media.samples.dtype, media.sample_rate


FILES = {
    **{kind: ("image", picture_file(kind)) for kind in PICTURES},
    **{f"{container}-{codec}": ("video", video_file(container, codec)) for container, codec in VIDEOS},
    **{f"{kind}-{subtype}": ("audio", sound_file(kind, subtype)) for kind, subtype in SOUNDS},
    **{mode: ("image", saved(PilImages.fromarray(pixels()).convert(mode), "TIFF")) for mode in ("1", "L", "CMYK", "LAB", "F", "I")},
    **{mode: ("image", saved(PilImages.fromarray(pixels()).convert(mode), "PNG")) for mode in ("P", "LA", "RGBA")},
    "16-bit": ("image", saved(PilImages.fromarray(np.arange(12, dtype="<u2").reshape(3, 4) * 5_000), "PNG")),
    "clear-index": ("image", saved(PilImages.fromarray(pixels()).quantize(8), "PNG", transparency=2)),
    "clear-indexes": ("image", saved(PilImages.fromarray(pixels()).quantize(8), "PNG", transparency=bytes(range(8)))),
    "clear-colour": ("image", saved(PilImages.fromarray(pixels()), "PNG", transparency=(1, 2, 3))),
    "clear-grey": ("image", saved(PilImages.fromarray(pixels()).convert("L"), "PNG", transparency=7)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_what_it_is_here(pool: DecoderPool, name: str) -> None:
    modality, file = FILES[name]
    assert content(pool.decode(file, modality, LIMITS, 16_000)) == content(decode(file, modality, LIMITS, 16_000))


@pytest.mark.parametrize(
    ("data", "modality"),
    [(b"", "image"), (b"noise", "audio"), (png_header(9_000, 9_000), "image"), (picture_file("PNG")[:200], "image"),
     (picture_file("PNG"), "video")],
)  # fmt: skip
def test_a_refusal_is_that_of_here(pool: DecoderPool, data: bytes, modality: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decode(data, modality, LIMITS, 16_000)
    error, before = refused(pool, data, modality), pool.pids
    assert (error.reason, error.message) == (raised.value.reason, raised.value.message)
    assert pool.pids == before


def test_a_process_that_was_killed_is_one_requests_affair_at_most(pool: DecoderPool) -> None:
    (before,) = pool.pids
    os.kill(before, signal.SIGKILL)
    try:
        pool.decode(picture_file("PNG"), "image", LIMITS, None)
    except InvalidRequest as error:  # where it was still dying when it was asked
        assert reason_of(error) == "MEDIA_DECODE"
    assert pool.decode(picture_file("PNG"), "image", LIMITS, None).pixels.size == (32, 24)
    (after,) = pool.pids
    assert after != before


def test_a_process_that_hangs_is_killed_and_replaced() -> None:
    pool = DecoderPool(1, LIMITS)
    try:
        assert pool.decode(picture_file("PNG"), "image", LIMITS, None).pixels.size == (32, 24)
        (before,) = pool.pids
        os.kill(before, signal.SIGSTOP)
        pool._wall_factor = 0.02  # a fifth of a second
        error = refused(pool, picture_file("BMP") + b"\0" * (1 << 20))  # more than a pipe holds
        assert (reason_of(error), error.message) == (
            "MEDIA_DECODE",
            "the file cannot be decoded: its decoder took too long",
        )
        assert pool.decode(picture_file("PNG"), "image", LIMITS, None).pixels.size == (32, 24)
        assert before not in pool.pids
    finally:
        pool.close()


def test_a_file_that_takes_too_long_to_decode_is_refused() -> None:
    pool = DecoderPool(1, LIMITS, cpu_seconds={"image": 0.02}, wall_factor=1_000)
    try:
        error = refused(pool, saved(PilImages.new("RGB", (7_000, 7_000)), "PNG"))
        assert (reason_of(error), error.message) == (
            "MEDIA_DECODE",
            "the file cannot be decoded: its decoder took too long",
        )
    finally:
        pool.close()


def test_a_file_that_takes_too_much_memory_is_refused() -> None:
    pool = DecoderPool(1, LIMITS, memory_bytes=64 << 20)
    try:
        error = refused(pool, saved(PilImages.new("RGB", (7_000, 7_000)), "PNG"))
        assert reason_of(error) in ("MEDIA_TOO_LARGE", "MEDIA_DECODE")
        assert pool.decode(picture_file("PNG"), "image", LIMITS, None).pixels.size == (32, 24)
    finally:
        pool.close()


def test_a_process_has_no_network_and_none_of_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    pool = DecoderPool(1, LIMITS)
    try:
        assert pool.decode(picture_file("PNG"), "image", LIMITS, None).pixels.size == (32, 24)
        (pid,) = pool.pids
        assert b"HF_TOKEN" not in Path(f"/proc/{pid}/environ").read_bytes()
        if not _may_leave_network():
            pytest.skip("processes may not have a network of their own here")
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        interfaces = Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii").splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    finally:
        pool.close()


def _may_leave_network() -> bool:
    code = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x50000000) != 0)"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_share_the_processes(pool: DecoderPool) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda kind: pool.decode(picture_file(kind), "image", LIMITS, None), PICTURES * 3))
    assert [picture.pixels.size for picture in found] == [(32, 24)] * len(PICTURES) * 3
    assert len(pool.pids) == 1


def test_a_closed_pool_leaves_no_process() -> None:
    pool = DecoderPool(2, LIMITS)
    pids = pool.pids
    pool.close()
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_processes_take_as_many_frames_as_they_are_told() -> None:
    limits = MediaLimits(sampled_frames=3)
    pool = DecoderPool(1, limits)
    try:
        assert len(pool.decode(video_file(), "video", limits, None).frames) == 3
    finally:
        pool.close()
