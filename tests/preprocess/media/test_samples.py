"""Media that comes decoded: the same checks of size as for files, and no guess at what a tensor means."""

from __future__ import annotations

import numpy as np
import pytest

from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2
from preprocess.media.decoded import Audio, Image, Video
from preprocess.media.limits import MediaLimits
from preprocess.media.samples import read_embeddings, read_samples
from tests.preprocess.media.files import pixels, reason_of
from tests.preprocess.media.tensors import to_tensor

IMAGE, VIDEO, AUDIO = np.zeros((4, 6, 3), np.uint8), np.zeros((2, 4, 6, 3), np.uint8), np.zeros(800, np.float32)


def read(array: np.ndarray, modality: str, limits: dict[str, float] | None = None, **fields: float):
    message = media_pb2.Media(samples=to_tensor(array), **fields)
    return read_samples(message, modality, MediaLimits(**limits or {}), 16_000)


def refused(array: np.ndarray, modality: str, limits: dict[str, float] | None = None, **fields: float) -> str:
    with pytest.raises(InvalidRequest) as raised:
        read(array, modality, limits, **fields)
    return reason_of(raised.value)


def test_pixels_are_a_picture() -> None:
    found = read(pixels(), "image")
    assert isinstance(found, Image) and found.pixels.mode == "RGB"
    assert np.array_equal(np.asarray(found.pixels), pixels())
    assert read(pixels()[..., 0], "image").pixels.mode == "L"


def test_frames_are_a_video_with_a_rate() -> None:
    found = read(VIDEO, "video", frames_per_second=2.5)
    assert isinstance(found, Video) and found.frames.shape == VIDEO.shape and found.frames_per_second == 2.5
    assert read(VIDEO, "video").frames_per_second == 1.0


def test_sound_is_brought_to_the_rate_of_the_model() -> None:
    found = read(AUDIO, "audio", sample_rate=8_000)
    assert isinstance(found, Audio) and (len(found.samples), found.sample_rate) == (1_600, 16_000)
    assert len(read(AUDIO, "audio").samples) == 800


@pytest.mark.parametrize(
    ("array", "modality", "fields"),
    [
        (IMAGE[..., :2], "image", {}),
        (IMAGE.astype(np.float32), "image", {}),
        (VIDEO, "image", {}),
        (IMAGE, "video", {}),
        (VIDEO[..., :1], "video", {}),
        (VIDEO, "video", {"frames_per_second": 0.0}),
        (VIDEO, "video", {"frames_per_second": float("nan")}),
        (VIDEO, "video", {"frames_per_second": 1_001.0}),
        (AUDIO[:, None], "audio", {}),
        (AUDIO.astype(np.int32), "audio", {}),
        (AUDIO, "audio", {"sample_rate": 10}),
        (AUDIO, "audio", {"sample_rate": 0}),
        (AUDIO, "audio", {"sample_rate": 10_000_000}),
        (AUDIO * np.nan, "audio", {}),
    ],
)
def test_samples_that_are_no_media_are_refused(array: np.ndarray, modality: str, fields: dict[str, float]) -> None:
    assert refused(array, modality, **fields) == "MEDIA_UNUSABLE"


@pytest.mark.parametrize(
    ("array", "modality", "limits"),
    [
        (IMAGE, "image", {"image_pixels": 23}),
        (VIDEO, "video", {"video_frames": 1}),
        (VIDEO, "video", {"video_pixels": 47}),
        (AUDIO, "audio", {"audio_seconds": 0.04}),
    ],
)
def test_samples_over_a_limit_are_refused(array: np.ndarray, modality: str, limits: dict[str, float]) -> None:
    assert refused(array, modality, limits) == "MEDIA_TOO_LARGE"


def test_embeddings_are_floats_with_their_extras() -> None:
    message = media_pb2.Embeddings(
        values=[to_tensor(np.ones((3, 4), np.float16)), to_tensor(np.ones((2, 4), np.float32))]
    )
    message.image_grid_thw.CopyFrom(to_tensor(np.array([[1, 2, 2], [1, 2, 4]], np.int32)))
    found = read_embeddings(message, "image")
    assert [(value.dtype, value.shape) for value in found.values] == [(np.float32, (3, 4)), (np.float32, (2, 4))]
    assert found.extras["image_grid_thw"].dtype == np.int64 and list(found.extras) == ["image_grid_thw"]


@pytest.mark.parametrize(
    "message",
    [
        media_pb2.Embeddings(),
        media_pb2.Embeddings(values=[to_tensor(np.ones(3, np.float32))]),
        media_pb2.Embeddings(values=[to_tensor(np.ones((3, 4), np.int32))]),
        media_pb2.Embeddings(
            values=[to_tensor(np.ones((3, 4), np.float32))], image_sizes=to_tensor(np.ones((1, 3), np.int64))
        ),
        media_pb2.Embeddings(
            values=[to_tensor(np.ones((3, 4), np.float32))], image_sizes=to_tensor(np.ones((1, 2), np.float32))
        ),
    ],
    ids=["none", "one-dimension", "integers", "three-columns", "sizes-in-floats"],
)
def test_embeddings_that_are_none_are_refused(message: media_pb2.Embeddings) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_embeddings(message, "image")
    assert reason_of(raised.value) == "MEDIA_UNUSABLE"
