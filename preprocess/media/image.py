"""Owns pictures out of files: the first one of a file, whole or not at all, and the way up that it is to be seen."""

from __future__ import annotations

import io

from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as PilImages
from PIL.Image import Image as PilImage
from PIL.Image import Transpose

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Image
from preprocess.media.formats import FileFormat
from preprocess.media.limits import MediaLimits, too_large, undecodable

# What has to be done to a picture that is stored with each orientation of EXIF (CIPA DC-008, tag 0x0112).
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")


def decode_image(data: bytes, format: FileFormat, limits: MediaLimits) -> Image:
    """The picture of a file; raises InvalidRequest: MEDIA_TOO_LARGE from its header alone, or MEDIA_DECODE."""
    try:
        if format.name == "WebP":  # whose reader makes room for the picture when it opens the file
            limits.check_picture(*_webp_size(data))
        with PilImages.open(io.BytesIO(data), formats=[format.pillow]) as file:
            limits.check_picture(*file.size)
            file.load()
            picture = file.copy()
            orientation = _orientation(file)
    except InvalidRequest:
        raise
    except PilImages.DecompressionBombError:
        raise too_large(f"the picture has more than the {limits.image_pixels:,} pixels that are taken") from None
    except MemoryError:
        raise too_large("the picture takes more memory than there is for one") from None
    except UnidentifiedImageError:
        raise undecodable(f"the file begins like {format.name}, and is none") from None
    except (
        Exception
    ):  # what decoders raise for files that are wrong has no common kind, and its text is not for clients
        raise undecodable(f"the {format.name} file is damaged or not complete") from None
    if picture.mode not in MODES:
        picture = picture.convert("I" if picture.mode.startswith("I;16") else "RGB")
    return Image(picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture)


def _orientation(picture: PilImage) -> int:
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a picture whose notes cannot be read is one without notes
        return 1


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas; (0, 0) where the header is not complete (RFC 9649)."""
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
