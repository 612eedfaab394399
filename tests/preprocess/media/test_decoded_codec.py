"""What a decoding process says is checked: one that was taken over by a file says nothing but media or an error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Audio, Video
from preprocess.media.decoded_codec import pack, unpack
from preprocess.media.limits import MODALITIES, MediaLimits

LIMITS = MediaLimits(image_pixels=1_000, video_pixels=1_000, audio_seconds=1.0)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
HEADERS = st.dictionaries(
    st.sampled_from(["mode", "size", "palette", "transparency", "shape", "frames_per_second", "rate"]),
    VALUES | st.lists(VALUES, max_size=4) | st.sampled_from(["RGB", "P", "1", [2, 2], [1, 2, 2, 3], 16_000]),
)


@given(HEADERS, st.binary(max_size=40), st.sampled_from(MODALITIES))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_header_and_bytes_are_media_or_an_error(header: dict, data: bytes, modality: str) -> None:
    try:
        assert unpack(header, data, modality, LIMITS).modality == modality
    except (ValueError, KeyError, TypeError, InvalidRequest):
        pass


@pytest.mark.parametrize(
    ("header", "size", "modality"),
    [
        ({"mode": "RGB", "size": [100, 100]}, 30_000, "image"),
        ({"shape": [10, 20, 20, 3], "frames_per_second": 1.0}, 12_000, "video"),
        ({"rate": 1_000}, 4 * 3_000, "audio"),
    ],
)
def test_what_is_over_a_limit_is_refused_again(header: dict, size: int, modality: str) -> None:
    with pytest.raises(InvalidRequest):
        unpack(header, bytes(size), modality, LIMITS)


def test_frames_and_sound_come_back() -> None:
    video = Video(np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)[:, ::-1], 2.5)
    header, data = pack(video)
    found = unpack(header, bytes(data), "video", LIMITS)
    assert np.array_equal(found.frames, video.frames) and found.frames_per_second == 2.5
    audio = Audio(np.linspace(-1, 1, 9, dtype=np.float32), 8_000)
    header, data = pack(audio)
    found = unpack(header, bytes(data), "audio", LIMITS)
    assert np.array_equal(found.samples, audio.samples) and found.sample_rate == 8_000
