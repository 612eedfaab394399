"""Owns what the public Media message says about itself: its modality, and where it is in a request when it is refused."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2
from preprocess.media.limits import unusable

_MODALITIES = {
    media_pb2.MEDIA_KIND_IMAGE: "image",
    media_pb2.MEDIA_KIND_VIDEO: "video",
    media_pb2.MEDIA_KIND_AUDIO: "audio",
}


def modality_of(media: media_pb2.Media) -> str:
    """image, video or audio; raises InvalidRequest (MEDIA_UNUSABLE) for a kind that is none."""
    if media.kind not in _MODALITIES:
        raise unusable(f"kind is {media.kind}, which is not a kind of media")
    return _MODALITIES[media.kind]


def num_items(media: media_pb2.Media) -> int:
    """How many items the message is, as far as its own shapes tell."""
    if media.WhichOneof("content") != "embeddings":
        return 1
    shapes = (tensor.shape for tensor in media.embeddings.values)
    return sum(shape[0] if len(shape) == 3 else 1 for shape in shapes)


def samples_digest(media: media_pb2.Media) -> bytes:
    """SHA-256 over decoded samples and all that tells what they are."""
    tensor = media.samples
    shape, rates = ",".join(map(str, tensor.shape)), f"{media.frames_per_second!r}\0{media.sample_rate}"
    digest = hashlib.sha256(f"samples\0{media.kind}\0{tensor.dtype}\0{shape}\0{rates}\0".encode())
    digest.update(tensor.data)
    return digest.digest()


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """What is refused inside is refused with the path of the item in the request."""
    try:
        yield
    except InvalidRequest as error:
        problem = error.message
        raise InvalidRequest(f"{path}: {problem}", error.reason, fields=((path, problem),)) from None
