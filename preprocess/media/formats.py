"""Owns which kinds of files are read, and recognises them by their first bytes; what a file is called does not count."""

from __future__ import annotations

import dataclasses
import re

from PIL import features

from preprocess.media.limits import undecodable


@dataclasses.dataclass(frozen=True, slots=True)
class FileFormat:
    """A kind of file and who reads it."""

    name: str
    modalities: tuple[str, ...]
    pillow: str = ""  # the plugin of Pillow
    libsndfile: bool = False
    ffmpeg: str = ""  # the demuxer of FFmpeg


# Pillow's own wheels read AVIF; builds of it without libavif do not.
_FORMATS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), FileFormat("PNG", ("image",), pillow="PNG")),
    (re.compile(rb"\xff\xd8\xff"), FileFormat("JPEG", ("image",), pillow="JPEG")),
    (re.compile(rb"GIF8[79]a"), FileFormat("GIF", ("image", "video"), pillow="GIF", ffmpeg="gif")),
    (re.compile(rb"RIFF.{4}WEBP", re.S), FileFormat("WebP", ("image",), pillow="WEBP")),
    (re.compile(rb"BM.{4}\0{4}", re.S), FileFormat("BMP", ("image",), pillow="BMP")),
    (re.compile(rb"II\*\0|MM\0\*"), FileFormat("TIFF", ("image",), pillow="TIFF")),
    (re.compile(rb"RIFF.{4}WAVE|RF64.{4}WAVE", re.S), FileFormat("WAV", ("audio",), libsndfile=True)),
    (re.compile(rb"RIFF.{4}AVI ", re.S), FileFormat("AVI", ("video",), ffmpeg="avi")),
    (re.compile(rb"FORM.{4}AIF[FC]", re.S), FileFormat("AIFF", ("audio",), libsndfile=True)),
    (re.compile(rb"fLaC"), FileFormat("FLAC", ("audio",), libsndfile=True)),
    (re.compile(rb"OggS"), FileFormat("Ogg", ("audio",), libsndfile=True)),
    (re.compile(rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]"), FileFormat("MP3", ("audio",), libsndfile=True)),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), FileFormat("AAC", ("audio",), ffmpeg="aac")),
    (re.compile(rb".{4}ftypavi[fs]", re.S), FileFormat("AVIF", ("image",) if features.check("avif") else (), pillow="AVIF")),
    (re.compile(rb".{4}ftyp(?:hei|hev|mif|msf)", re.S), FileFormat("HEIF", ())),
    (re.compile(rb".{4}(?:ftyp|moov|mdat|wide|free)", re.S), FileFormat("MP4", ("video", "audio"), ffmpeg="mov")),
    (re.compile(rb"\x1a\x45\xdf\xa3"), FileFormat("Matroska", ("video", "audio"), ffmpeg="matroska")),
    (re.compile(rb"%PDF"), FileFormat("PDF", ())),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), FileFormat("JPEG 2000", ())),
    (re.compile(rb"\s*<(?:\?xml|svg|!DOCTYPE|html)", re.I), FileFormat("text", ())),
)  # fmt: skip


def sniff(data: bytes, modality: str) -> FileFormat:
    """What the file is; raises InvalidRequest (MEDIA_DECODE) where it is not read, or is none of this modality."""
    if not data:
        raise undecodable("the file is empty")
    found = next((format for pattern, format in _FORMATS if pattern.match(data[:64])), None)
    if found is not None and modality in found.modalities:
        return found
    readable = ", ".join(format.name for _, format in _FORMATS if modality in format.modalities)
    what = f"is {found.name}" if found else "begins as no known kind of file does"
    raise undecodable(f"the file {what}; {modality} files can be {readable}")
