"""What a file is, its first bytes say; nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import features

from forebay.errors import InvalidRequest
from preprocess.media.formats import sniff
from preprocess.media.limits import MODALITIES
from tests.preprocess.media.files import (
    FFMPEG_SOUNDS,
    PICTURES,
    SOUNDS,
    VIDEOS,
    ffmpeg_sound_file,
    picture_file,
    reason_of,
    sound_file,
    video_file,
)

FILES = (
    [(kind, "image", picture_file(kind)) for kind in PICTURES]
    + [(container, "video", video_file(container, codec)) for container, codec in VIDEOS]
    + [(kind, "audio", sound_file(kind, subtype)) for kind, subtype in SOUNDS]
    + [(container, "audio", ffmpeg_sound_file(container, codec)) for container, codec in FFMPEG_SOUNDS]
)
NAMES = {
    "mp4": "MP4", "mov": "MP4", "webm": "Matroska", "avi": "AVI", "adts": "AAC", "OGG": "Ogg", "WEBP": "WebP",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "modality", "file"), FILES, ids=[f"{kind}-{modality}" for kind, modality, _ in FILES])
def test_a_file_is_known_by_its_first_bytes(kind: str, modality: str, file: bytes) -> None:
    assert sniff(file, modality).name == NAMES.get(kind, kind)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "text"),
        (b"\n<?xml version='1.0'?>", "text"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\0\0\0\x20ftypheic", "HEIF"),
    ],
)
def test_files_that_are_never_read_are_named(head: bytes, name: str) -> None:
    for modality in MODALITIES:
        with pytest.raises(InvalidRequest, match=f"the file is {name}; {modality} files can be") as raised:
            sniff(head + b"\0" * 100, modality)
        assert reason_of(raised.value) == "MEDIA_DECODE"


@pytest.mark.parametrize(
    "head", [b"%!PS-Adobe-3.0", b"MZ\x90", b"PK\x03\x04", b"\x7fELF", b"#!/bin/sh", b"BM not a bitmap"]
)
def test_a_file_that_is_not_known_is_refused(head: bytes) -> None:
    with pytest.raises(InvalidRequest, match="begins as no known kind of file does; image files can be PNG, JPEG"):
        sniff(head + b"\1" * 100, "image")


def test_avif_is_read_where_pillow_does_and_heic_never() -> None:
    head = b"\0\0\0\x20ftyp%s" + b"\0" * 100
    if features.check("avif"):
        assert sniff(head % b"avif", "image").name == "AVIF"
    with pytest.raises(InvalidRequest, match="the file is HEIF; image files can be PNG, JPEG"):
        sniff(head % b"heic", "image")
    with pytest.raises(InvalidRequest, match="the file is AVIF; video files can be"):
        sniff(head % b"avis", "video")


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the file is empty"):
        sniff(b"", "image")


def test_a_file_of_another_modality_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the file is PNG; audio files can be WAV"):
        sniff(picture_file("PNG"), "audio")


@given(st.binary(max_size=80), st.sampled_from(MODALITIES))
def test_any_bytes_are_known_or_refused(data: bytes, modality: str) -> None:
    try:
        assert modality in sniff(data, modality).modalities
    except InvalidRequest as error:
        assert reason_of(error) == "MEDIA_DECODE"
