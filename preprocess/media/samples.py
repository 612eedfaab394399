"""Owns media that comes decoded: pixels, frames, sound and embeddings in tensors, checked and in the forms of decoded.py."""

from __future__ import annotations

import numpy as np
from PIL import Image as PilImages

from forebay.v1 import media_pb2
from preprocess.media.decoded import Audio, DecodedMedia, Embeddings, Image, Video
from preprocess.media.limits import MediaLimits, unusable
from preprocess.media.resampling import check_rate, resampled
from preprocess.media.tensor_codec import FLOATS, INTEGERS, to_array

MAX_FRAMES_PER_SECOND = 1_000.0
EXTRAS = {"image_grid_thw": 3, "video_grid_thw": 3, "image_sizes": 2}  # their columns


def read_samples(media: media_pb2.Media, modality: str, limits: MediaLimits, sample_rate: int | None) -> DecodedMedia:
    """What `samples` of a message are; sound at `sample_rate`. Raises InvalidRequest, as do the functions below."""
    if modality == "image":
        return _image(media.samples, limits)
    if modality == "video":
        return _video(media, limits)
    return _audio(media, limits, sample_rate)


def read_embeddings(message: media_pb2.Embeddings, modality: str) -> Embeddings:
    """What a client computed; the model's processor checks whether it fits."""
    if not message.values:
        raise unusable("there are no embeddings")
    values = tuple(to_array(tensor, FLOATS, (2, 3)).astype(np.float32, copy=False) for tensor in message.values)
    extras = {}
    for name, columns in EXTRAS.items():
        if message.HasField(name):
            numbers = to_array(getattr(message, name), INTEGERS, (2,)).astype(np.int64, copy=False)
            if numbers.shape[1] != columns:
                raise unusable(f"{name} has {numbers.shape[1]} columns; it must have {columns}")
            extras[name] = numbers
    return Embeddings(modality, values, extras)


def _image(tensor: media_pb2.Tensor, limits: MediaLimits) -> Image:
    pixels = to_array(tensor, (media_pb2.TENSOR_TYPE_UINT8,), (2, 3))
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise unusable(f"the picture's shape is {list(pixels.shape)}; it can be (height, width, 3) or (height, width)")
    limits.check_picture(pixels.shape[1], pixels.shape[0])
    return Image(PilImages.fromarray(pixels))


def _video(media: media_pb2.Media, limits: MediaLimits) -> Video:
    frames = to_array(media.samples, (media_pb2.TENSOR_TYPE_UINT8,), (4,))
    if frames.shape[3] != 3:
        raise unusable(f"the video's shape is {list(frames.shape)}; it must be (frames, height, width, 3)")
    limits.check_frames(frames.shape[0], frames.shape[2], frames.shape[1])
    rate = media.frames_per_second if media.HasField("frames_per_second") else 1.0
    if not 0 < rate <= MAX_FRAMES_PER_SECOND:  # also where it is not a number
        raise unusable(
            f"frames_per_second is {rate:g}; it must be more than 0 and at most {MAX_FRAMES_PER_SECOND:,.0f}"
        )
    return Video(frames, rate)


def _audio(media: media_pb2.Media, limits: MediaLimits, sample_rate: int | None) -> Audio:
    samples = to_array(media.samples, (media_pb2.TENSOR_TYPE_FLOAT32,), (1,))
    rate = media.sample_rate if media.HasField("sample_rate") else sample_rate
    if rate is None:
        raise unusable("this model takes no audio items")
    check_rate(rate)
    limits.check_duration("audio", len(samples) / rate)
    return resampled(samples, rate, sample_rate)
