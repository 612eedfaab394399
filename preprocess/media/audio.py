"""Owns sound out of files: one channel, at the rate that a model takes."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np

from forebay.errors import InvalidRequest
from preprocess.media.containers import opened, stream_of
from preprocess.media.decoded import Audio
from preprocess.media.formats import FileFormat
from preprocess.media.limits import MediaLimits, too_large, undecodable, unusable
from preprocess.media.resampling import check_rate, resampled

MAX_CHANNELS = 8
BLOCK_SAMPLES = 1 << 16


def decode_audio(data: bytes, format: FileFormat, limits: MediaLimits, sample_rate: int | None) -> Audio:
    """The sound of a file, its channels' mean; at the file's own rate without `sample_rate`.

    Raises InvalidRequest: MEDIA_TOO_LARGE, MEDIA_UNUSABLE or MEDIA_DECODE. What a header says of the length may refuse a
    file, but counts no further: decoding stops where the limit is.
    """
    try:
        if format.libsndfile:
            rate, blocks = _sndfile(data, limits)
        else:
            rate, blocks = _ffmpeg(data, format, limits)
        found, count = [], 0
        for block in blocks:
            count += len(block)
            if count > limits.audio_samples:
                raise too_large(f"the sound has more than the {limits.audio_samples:,} samples that are taken")
            limits.check_duration("audio", count / rate)
            found.append(block.mean(axis=1, dtype=np.float32))
    except InvalidRequest:
        raise
    except MemoryError:
        raise too_large("the sound takes more memory than there is for one") from None
    except Exception:  # see image.py
        raise undecodable(f"the {format.name} file is damaged or not complete") from None
    if not count:
        raise undecodable("the file has no sound in it")
    samples = np.concatenate(found)
    if not np.isfinite(samples).all():
        raise undecodable("the sound has samples that are not finite numbers")
    return resampled(samples, rate, sample_rate)


def _sndfile(data: bytes, limits: MediaLimits) -> tuple[int, Iterator[np.ndarray]]:
    import soundfile

    file = soundfile.SoundFile(io.BytesIO(data))
    _check_sound(file.samplerate, file.channels)
    limits.check_duration("audio", file.frames / file.samplerate)

    def blocks() -> Iterator[np.ndarray]:
        with file:
            while len(block := file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                yield block  # (samples, channels)

    return file.samplerate, blocks()


def _ffmpeg(data: bytes, format: FileFormat, limits: MediaLimits) -> tuple[int, Iterator[np.ndarray]]:
    import av

    container = opened(data, format)
    stream = stream_of(container, "audio")
    rate = stream.codec_context.sample_rate
    _check_sound(rate, stream.codec_context.channels)

    def blocks() -> Iterator[np.ndarray]:
        with container:
            to_floats = av.AudioResampler(format="fltp", rate=rate)  # which keeps the channels
            for frame in container.decode(stream):
                for part in to_floats.resample(frame):
                    yield part.to_ndarray().T  # (samples, channels)

    return rate, blocks()


def _check_sound(rate: int, channels: int) -> None:
    check_rate(rate)
    if not 1 <= channels <= MAX_CHANNELS:
        raise unusable(f"the sound has {channels} channels; it can have 1 to {MAX_CHANNELS}")
