"""Files -> pictures: the reference's pixels, upright; what is damaged or too large is refused, never half a picture."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImages

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Image
from preprocess.media.decoder import decode
from preprocess.media.limits import MediaLimits
from tests.preprocess.media.files import (
    PICTURES,
    animation,
    chunk_of_text,
    picture_file,
    pixels,
    png_header,
    reason_of,
    saved,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, about files that are wrong on purpose

# What is seen of a picture that is stored with each orientation (CIPA DC-008, tag 0x0112).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


AVIF = pytest.param("AVIF", marks=pytest.mark.skipif("AVIF" not in PICTURES, reason="this Pillow reads no AVIF"))


def picture_of(data: bytes, **limits: int) -> PilImages.Image:
    decoded = decode(data, "image", MediaLimits(**limits), None)
    assert isinstance(decoded, Image)
    return decoded.pixels


def refused(data: bytes, **limits: int) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        picture_of(data, **limits)
    return raised.value


@pytest.mark.parametrize("kind", PICTURES)
def test_a_file_has_the_pixels_that_pillow_reads(kind: str) -> None:
    found, wanted = picture_of(picture_file(kind)), PilImages.open(io.BytesIO(picture_file(kind)))
    assert (found.mode, found.size) == (wanted.mode, wanted.size)
    assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(wanted.convert("RGB")))
    if kind not in ("JPEG", "GIF", "AVIF"):  # which keep less of a picture
        assert np.array_equal(np.asarray(found), pixels())


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("sixteenth", range(16))
def test_a_file_that_was_cut_is_refused(kind: str, sixteenth: int) -> None:
    file = picture_file(kind)
    error = refused(file[: len(file) * sixteenth // 16])
    assert reason_of(error) == "MEDIA_DECODE"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_refused(progressive: bool) -> None:
    file = saved(PilImages.fromarray(pixels(200, 200)), "JPEG", progressive=progressive)
    assert reason_of(refused(file[: -len(file) // 4])) == "MEDIA_DECODE"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", AVIF])
def test_a_picture_stands_upright_whatever_way_it_is_stored(kind: str, orientation: int) -> None:
    exif = PilImages.Exif()
    exif[0x0112] = orientation
    stored = PilImages.fromarray(pixels())
    found = picture_of(saved(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    wanted = UPRIGHT[orientation](np.asarray(stored))
    assert found.size == wanted.shape[1::-1]
    if kind in ("JPEG", "AVIF"):
        assert np.asarray(found)[wanted[..., 0] == 250].mean(axis=0) == pytest.approx((250, 10, 10), abs=12)
    else:
        assert np.array_equal(np.asarray(found), wanted)


def test_a_picture_with_broken_notes_is_read_as_it_is_stored() -> None:
    file = saved(PilImages.fromarray(pixels()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert picture_of(file).size == (32, 24)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", AVIF])
def test_of_a_picture_that_moves_the_first_frame_counts(kind: str) -> None:
    found = picture_of(animation(kind, [(255, 0, 0), (0, 255, 0), (0, 0, 255)]))
    assert found.convert("RGB").getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=3)


@pytest.mark.parametrize(
    ("mode", "kind", "read_as"),
    [
        ("CMYK", "JPEG", "CMYK"),
        ("L", "JPEG", "L"),
        ("I;16", "PNG", "I;16"),
        ("P", "PNG", "P"),
        ("LA", "PNG", "LA"),
        ("RGBA", "PNG", "RGBA"),
        ("1", "PNG", "1"),
        ("F", "TIFF", "F"),
        ("I;16B", "TIFF", "I"),
    ],
)
def test_a_picture_keeps_the_mode_of_its_file(mode: str, kind: str, read_as: str) -> None:
    grey = PilImages.fromarray(pixels()).convert("L")
    if mode.startswith("I;16"):
        stored = PilImages.fromarray((np.asarray(grey) * np.uint16(200)).astype(">u2" if mode == "I;16B" else "<u2"))
    else:
        stored = PilImages.fromarray(pixels()).convert(mode)
    found = picture_of(saved(stored, kind))
    assert found.mode == read_as
    assert found.size == stored.size


def test_a_palette_keeps_its_transparency() -> None:
    stored = PilImages.fromarray(pixels()).quantize(8)
    found = picture_of(saved(stored, "PNG", transparency=3))
    assert found.mode == "P" and "transparency" in found.info
    assert {0, 255} == set(np.asarray(found.convert("RGBA"))[..., 3].ravel())


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3, 2)])
def test_a_picture_can_be_small_or_narrow(size: tuple[int, int]) -> None:
    assert picture_of(saved(PilImages.new("RGB", size), "PNG")).size == size


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (2**31 - 1, 1), (10_000, 9_000)])
def test_a_picture_too_large_is_refused_by_its_header(width: int, height: int) -> None:
    error = refused(png_header(width, height))
    assert reason_of(error) == "MEDIA_TOO_LARGE"


def test_the_limit_of_pixels_names_itself() -> None:
    error = refused(png_header(400, 300), image_pixels=100_000)
    assert error.message == "the picture has 400 x 300 pixels; at most 100,000 are taken"
    assert picture_of(picture_file("PNG"), image_pixels=32 * 24).size == (32, 24)


def test_a_webp_too_large_is_refused_before_there_is_room_for_it() -> None:
    file = bytearray(animation("WEBP", [(255, 0, 0), (0, 255, 0)]))
    assert file[12:16] == b"VP8X"
    file[24:30] = b"\xff\xff\xff\xff\xff\xff"
    assert reason_of(refused(bytes(file))) == "MEDIA_TOO_LARGE"


@pytest.mark.parametrize("kind", [AVIF])
def test_an_avif_is_judged_by_its_header_and_gives_no_more_than_that_says(kind: str) -> None:
    file = picture_file(kind)
    size = file.index(b"ispe") + 8  # of the image, after the box's version and flags (ISO/IEC 23008-12, 6.5.3)
    assert struct.unpack(">II", file[size : size + 8]) == (32, 24)
    wide = file[:size] + struct.pack(">II", 10_000, 9_000) + file[size + 8 :]
    assert reason_of(refused(wide)) == "MEDIA_TOO_LARGE"
    small = file[:size] + struct.pack(">II", 1, 1) + file[size + 8 :]
    assert picture_of(small).size == (1, 1)  # the decoder fits its frame, of 32 x 24, to the header


@pytest.mark.parametrize("kind", ["lossy", "lossless"])
def test_the_size_of_a_webp_is_read_from_its_header(kind: str) -> None:
    file = saved(PilImages.fromarray(pixels()), "WEBP", lossless=kind == "lossless")
    assert reason_of(refused(file, image_pixels=32 * 24 - 1)) == "MEDIA_TOO_LARGE"
    assert picture_of(file, image_pixels=32 * 24).size == (32, 24)


def test_a_picture_without_pixels_is_refused() -> None:
    assert reason_of(refused(png_header(0, 5))) == "MEDIA_DECODE"


def test_a_note_that_unpacks_to_much_is_refused() -> None:
    assert reason_of(refused(chunk_of_text(100 << 20))) == "MEDIA_DECODE"


@given(st.sampled_from(PICTURES), st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_a_file_that_only_begins_rightly_is_refused_or_read(kind: str, rest: bytes) -> None:
    with pytest.raises(InvalidRequest) as raised:
        picture_of(picture_file(kind)[:16] + rest)
    assert reason_of(raised.value) in ("MEDIA_DECODE", "MEDIA_TOO_LARGE")


@given(kind=st.sampled_from(PICTURES), place=st.floats(0, 1), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_file_with_a_wrong_byte_is_refused_or_read(kind: str, place: float, value: int) -> None:
    file = bytearray(picture_file(kind))
    file[int(place * (len(file) - 1))] = value
    try:
        picture_of(bytes(file))
    except InvalidRequest as error:
        assert reason_of(error) in ("MEDIA_DECODE", "MEDIA_TOO_LARGE")


def test_what_a_decoder_says_of_a_file_is_not_for_clients() -> None:
    error = refused(picture_file("JPEG")[:-20])
    assert error.message == "the JPEG file is damaged or not complete"
