"""Files -> sound: one channel at the model's rate; lengths that headers only claim cost nothing."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import soxr

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Audio
from preprocess.media.decoder import decode
from preprocess.media.limits import MediaLimits
from tests.preprocess.media.files import (
    FFMPEG_SOUNDS,
    SOUNDS,
    ffmpeg_sound_file,
    reason_of,
    sound_file,
    tone,
    video_file,
)

RATE = 16_000


def sound_of(data: bytes, rate: int | None = RATE, **limits: float) -> Audio:
    decoded = decode(data, "audio", MediaLimits(**limits), rate)
    assert isinstance(decoded, Audio) and decoded.samples.dtype == np.float32
    return decoded


def refused(data: bytes, rate: int | None = RATE, **limits: float) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        sound_of(data, rate, **limits)
    return raised.value


def wav(
    samples: bytes, *, channels: int = 1, rate: int = RATE, bits: int = 16, kind: int = 1, claims: int | None = None
) -> bytes:
    """A WAV file that claims to have `claims` bytes of samples."""
    size = len(samples) if claims is None else claims
    width = channels * bits // 8
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * width & 0xFFFFFFFF, width, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", size) + samples
    return b"RIFF" + struct.pack("<I", min(len(body) if claims is None else claims + 36, 0xFFFFFFFF)) + body


def test_two_channels_become_their_mean_and_the_rate_is_kept_where_none_is_wanted() -> None:
    found = sound_of(sound_file("WAV", "FLOAT"), None)
    assert found.sample_rate == 48_000
    assert np.array_equal(found.samples, tone().mean(axis=1, dtype=np.float32))


def test_another_rate_is_resampled_as_librosa_does() -> None:
    found = sound_of(sound_file("WAV", "FLOAT"))
    assert found.sample_rate == RATE
    wanted = soxr.resample(tone().mean(axis=1, dtype=np.float32), 48_000, RATE, quality="HQ")
    assert np.array_equal(found.samples, wanted)


@pytest.mark.parametrize(
    ("count", "rate", "wanted"), [(8_002, 48_000, 2_668), (16_001, 44_100, 5_806), (1, 44_100, 1), (3, 8_000, 6)]
)
def test_lengths_are_rounded_up(count: int, rate: int, wanted: int) -> None:
    found = sound_of(wav(np.ones(count, "<i2").tobytes(), rate=rate))
    assert len(found.samples) == wanted


@pytest.mark.parametrize(("kind", "subtype"), SOUNDS)
def test_kinds_of_libsndfile(kind: str, subtype: str) -> None:
    _check_tone(sound_of(sound_file(kind, subtype)))


@pytest.mark.parametrize(("container", "codec"), FFMPEG_SOUNDS)
def test_kinds_of_ffmpeg(container: str, codec: str) -> None:
    _check_tone(sound_of(ffmpeg_sound_file(container, codec)))


def _check_tone(found: Audio) -> None:
    """It is the tone of files.py: 440 Hz at half its height, for half a second."""
    assert abs(len(found.samples) / found.sample_rate - 0.5) < 0.06
    middle = found.samples[2_000:6_000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert abs(np.argmax(spectrum) * found.sample_rate / len(middle) - 440) < 8
    assert 0.4 < np.abs(middle).max() < 0.6


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS")])
@pytest.mark.parametrize("length", [0, 4, 30, 60])
def test_a_file_without_its_beginning_is_refused(kind: str, subtype: str, length: int) -> None:
    assert reason_of(refused(sound_file(kind, subtype)[:length])) == "MEDIA_DECODE"


@pytest.mark.parametrize(("container", "codec"), [*FFMPEG_SOUNDS])
@pytest.mark.parametrize("sixteenth", range(16))
def test_a_file_of_ffmpeg_that_was_cut_is_refused_or_shorter(container: str, codec: str, sixteenth: int) -> None:
    file = ffmpeg_sound_file(container, codec)
    try:
        assert len(sound_of(file[: len(file) * sixteenth // 16]).samples) <= RATE
    except InvalidRequest as error:
        assert reason_of(error) == "MEDIA_DECODE"


def test_a_length_that_only_the_header_claims_is_not_believed() -> None:
    found = sound_of(wav(np.ones(100, "<i2").tobytes(), claims=0xFFFFFF00))
    assert len(found.samples) == 100


def test_sound_too_long_is_refused_by_its_header() -> None:
    error = refused(sound_file("FLAC", "PCM_16"), audio_seconds=0.1)
    assert reason_of(error) == "MEDIA_TOO_LARGE"
    assert error.message == "the audio has 0.5 s; at most 0.1 are taken"


@pytest.mark.parametrize("limits", [{"audio_seconds": 0.1}, {"audio_samples": 1_000}])
def test_sound_is_decoded_no_further_than_the_limit(limits: dict[str, float]) -> None:
    assert reason_of(refused(ffmpeg_sound_file("adts", "aac"), **limits)) == "MEDIA_TOO_LARGE"


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (wav(b""), "MEDIA_DECODE"),
        (wav(np.array([np.nan, 0], "<f4").tobytes(), bits=32, kind=3), "MEDIA_DECODE"),
        (wav(np.array([np.inf, 0], "<f4").tobytes(), bits=32, kind=3), "MEDIA_DECODE"),
        (wav(b"\0" * 200, rate=1), "MEDIA_UNUSABLE"),
        (wav(b"\0" * 200, rate=10_000_000), "MEDIA_UNUSABLE"),
        (wav(b"\0" * 256, channels=64), "MEDIA_UNUSABLE"),
        (b"RIFF\xff\xff\xff\xffWAVE", "MEDIA_DECODE"),
        (b"ID3" + b"\0" * 100, "MEDIA_DECODE"),
        (video_file(), "MEDIA_DECODE"),  # an MP4 without sound
    ],
    ids=["no-samples", "nan", "inf", "1-hz", "10-mhz", "64-channels", "head-only", "empty-mp3", "silent-video"],
)
def test_sound_that_is_none_is_refused(file: bytes, reason: str) -> None:
    assert reason_of(refused(file)) == reason


def test_one_sample_is_sound() -> None:
    assert len(sound_of(wav(b"\0\1")).samples) == 1
