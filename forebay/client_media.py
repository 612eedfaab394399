"""Owns how what Python users have of media, pictures, arrays, files, URLs, embeddings, becomes Media messages.

Pictures of PIL, arrays of numpy and tensors of torch are known by what they can do: none of these packages is needed here.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forebay.client_tensors import array_of, float_tensor, integer_tensor, is_array, pixel_tensor, sound_tensor
from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2

KINDS = {
    "image": media_pb2.MEDIA_KIND_IMAGE,
    "video": media_pb2.MEDIA_KIND_VIDEO,
    "audio": media_pb2.MEDIA_KIND_AUDIO,
}
_EXTRAS = {"image_grid_thw", "video_grid_thw", "image_sizes"}
# What PNG keeps as it is, for the server to convert as the model's own processor would.
_PNG_MODES = ("1", "L", "LA", "P", "RGBA", "I;16")


def to_media(data: Mapping[str, Any], field: str) -> list[media_pb2.Media]:
    """The items of vLLM's `multi_modal_data`: {"image" | "video" | "audio": one item or a list of them}.

    Raises InvalidRequest naming the item that is none.
    """
    if not isinstance(data, Mapping):
        raise _wrong(field, f"is a {type(data).__name__}; it must be a dictionary")
    found = []
    for modality, value in data.items():
        if modality not in KINDS:
            raise _wrong(field, f"has the key {repr(modality)[:50]}; it can have {', '.join(KINDS)}")
        if value is not None:
            found += _items(modality, value, f"{field}[{modality!r}]")
    return found


def one_media(modality: str, value: Any, field: str) -> media_pb2.Media:
    """The message of one item; raises InvalidRequest."""
    items = _items(modality, value, field)
    if len(items) != 1:
        raise _wrong(field, f"is {len(items)} items; it must be one")
    return items[0]


def media_of_url(modality: str, url: Any, field: str) -> media_pb2.Media:
    """The message of a data: URL, which holds a file, or of an https: one, which the server is to fetch."""
    if not isinstance(url, str):
        raise _wrong(field, f"is a {type(url).__name__}; it must be a URL")
    if url.startswith("https://"):
        return media_pb2.Media(kind=KINDS[modality], url=url)
    if not url.startswith("data:"):
        raise _wrong(field, "must be a data: or https: URL")
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise _wrong(field, "is a data: URL that is not base64")
    return media_pb2.Media(kind=KINDS[modality], data=_base64(body, field))


def media_of_base64(modality: str, text: Any, field: str) -> media_pb2.Media:
    """The message of an encoded file in base64."""
    if not isinstance(text, str):
        raise _wrong(field, f"is a {type(text).__name__}; it must be base64")
    return media_pb2.Media(kind=KINDS[modality], data=_base64(text, field))


def _items(modality: str, value: Any, field: str) -> list[media_pb2.Media]:
    if isinstance(value, Mapping):
        return [_embeddings(modality, value, field)]
    if isinstance(value, list | tuple) and not _is_one(modality, value):
        if value and all(is_array(part) and array_of(part).is_float and array_of(part).ndim == 2 for part in value):
            return [_embeddings(modality, {f"{modality}_embeds": value}, field)]
        return [item for index, part in enumerate(value) for item in _items(modality, part, f"{field}[{index}]")]
    if is_array(value):
        return _arrays(modality, value, field)
    return [_item(modality, value, field)]


def _is_one(modality: str, value: Sequence[Any]) -> bool:
    """Whether a list or tuple is one item: the frames of a video, or samples with what belongs to them."""
    if modality == "video":
        return _is_pair(value) or (bool(value) and all(map(_is_frame, value)))
    return modality == "audio" and bool(value) and (_is_pair(value) or _is_number(value[0]))


def _is_pair(value: Sequence[Any]) -> bool:
    """Whether it is frames or samples together with their rate or metadata."""
    return len(value) == 2 and not _is_number(value[0]) and (isinstance(value[1], Mapping) or _is_number(value[1]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()


def _is_frame(value: Any) -> bool:
    if is_array(value):
        return len(value.shape) == 3 and not array_of(value).is_float
    return _is_picture(value)


def _arrays(modality: str, value: Any, field: str) -> list[media_pb2.Media]:
    """The items of an array: by its type and dimensions pixels, sound or embeddings."""
    array = array_of(value)
    if modality == "audio" and array.ndim == 1:
        return [media_pb2.Media(kind=KINDS[modality], samples=sound_tensor(array, field))]
    if array.is_float and not (modality == "image" and array.shape[-1:] == (3,)):
        return [_embeddings(modality, {f"{modality}_embeds": value}, field)]
    each = {"image": 3, "video": 4}.get(modality)
    if array.ndim == (each or 0) + 1:
        return [
            item for index in range(array.shape[0]) for item in _arrays(modality, value[index], f"{field}[{index}]")
        ]
    if modality == "audio":
        raise _wrong(
            field, f"is an array of {array.dtype} of {array.ndim} dimensions; sound is (samples,) or (samples, rate)"
        )
    return [media_pb2.Media(kind=KINDS[modality], samples=pixel_tensor(array, each, field))]


def _item(modality: str, value: Any, field: str) -> media_pb2.Media:
    kind = KINDS[modality]
    if isinstance(value, media_pb2.Media):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return media_pb2.Media(kind=kind, data=bytes(value))
    if isinstance(value, Path):
        return media_pb2.Media(kind=kind, data=value.read_bytes())
    if isinstance(value, str):
        return media_of_url(modality, value, field)
    if modality == "image" and _is_picture(value):
        return _picture(value)
    if modality == "video" and isinstance(value, list | tuple):
        return _video(value, field)
    if modality == "audio" and isinstance(value, list | tuple):
        return _sound(value, field)
    raise _wrong(field, f"is a {type(value).__name__}, which is no form of {modality} items")


def _is_picture(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("mode", "size", "tobytes", "convert", "save"))


def _picture(image: Any) -> media_pb2.Media:
    """A picture of PIL: its pixels as they are, or a PNG where the processor has to see the mode."""
    plain = image.mode == "RGB" or (image.mode == "L" and "transparency" not in image.info)
    if not plain and image.mode in _PNG_MODES:
        file = io.BytesIO()
        image.save(file, "PNG", exif=b"", compress_level=1)  # a picture is as it stands: no note is to turn it
        return media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE, data=file.getvalue())
    return media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE, samples=_pixels(image if plain else image.convert("RGB")))


def _pixels(image: Any) -> media_pb2.Tensor:
    width, height = image.size
    shape = (height, width, 3) if image.mode == "RGB" else (height, width)
    return media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_UINT8, shape=shape, data=image.tobytes())


def _video(value: Sequence[Any], field: str) -> media_pb2.Media:
    """Frames, or (frames, frames per second), or (frames, metadata) as vLLM has it."""
    frames, rate = value, None
    if _is_pair(value):
        frames, about = value
        rate = about.get("fps") if isinstance(about, Mapping) else about
    if is_array(frames):
        tensor = pixel_tensor(array_of(frames), 4, field)
    else:
        parts = [
            _pixels(frame.convert("RGB"))
            if _is_picture(frame)
            else pixel_tensor(array_of(frame), 3, f"{field}[{index}]")
            for index, frame in enumerate(frames)
        ]
        if not parts or len({tuple(part.shape) for part in parts}) != 1:
            raise _wrong(field, "must be frames of one size")
        tensor = media_pb2.Tensor(
            dtype=media_pb2.TENSOR_TYPE_UINT8,
            shape=(len(parts), *parts[0].shape),
            data=b"".join(part.data for part in parts),
        )
    if rate is not None and isinstance(value[1], Mapping) and (total := value[1].get("total_num_frames")):
        rate = rate * tensor.shape[0] / total  # of these frames, not of the file that they were taken from
    return _rated(media_pb2.Media(kind=media_pb2.MEDIA_KIND_VIDEO, samples=tensor), "frames_per_second", rate, field)


def _sound(value: Sequence[Any], field: str) -> media_pb2.Media:
    """Samples, or (samples, samples per second); several channels become their mean."""
    samples, rate = value if _is_pair(value) else (value, None)
    tensor = sound_tensor(array_of(samples) if is_array(samples) else samples, field)
    media = media_pb2.Media(kind=media_pb2.MEDIA_KIND_AUDIO, samples=tensor)
    return _rated(media, "sample_rate", None if rate is None else int(rate), field)


def _rated(media: media_pb2.Media, name: str, rate: Any, field: str) -> media_pb2.Media:
    if rate is not None:
        try:
            setattr(media, name, rate)
        except (TypeError, ValueError):
            raise _wrong(field, f"has the rate {repr(rate)[:50]}, which is none") from None
    return media


def _embeddings(modality: str, value: Mapping[str, Any], field: str) -> media_pb2.Media:
    """Precomputed embeddings, {"image_embeds": …} and what the model needs beside them."""
    name = f"{modality}_embeds"
    if unknown := value.keys() - _EXTRAS - {name}:
        raise _wrong(
            field, f"has the key {min(map(str, unknown))}; it can have {name} and {', '.join(sorted(_EXTRAS))}"
        )
    if name not in value:
        raise _wrong(field, f"has no {name}")
    values = value[name]
    parts = [values] if is_array(values) else values
    if not isinstance(parts, list | tuple) or not all(map(is_array, parts)):
        raise _wrong(f"{field}[{name!r}]", "must be an array or a list of arrays")
    embeddings = media_pb2.Embeddings(values=[float_tensor(array_of(part), f"{field}[{name!r}]") for part in parts])
    for extra in _EXTRAS & value.keys():
        if value[extra] is not None:
            getattr(embeddings, extra).CopyFrom(integer_tensor(value[extra], f"{field}[{extra!r}]"))
    return media_pb2.Media(kind=KINDS[modality], embeddings=embeddings)


def _base64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _wrong(field, "is not base64") from None


def _wrong(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {problem}", fields=((field, problem),))
