"""Owns log-mel spectrograms as Whisper (Radford et al., 2022) reads them, in numpy."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from preprocess.processors.settings import Settings

_MAX_FREQUENCY = 8000.0  # of the filters, whatever the sample rate
_KNEE, _LINEAR_STEP = 1000.0, 200.0 / 3  # the mel scale of Slaney (1998) is linear up to 1 kHz, and logarithmic beyond
_LOG_STEP = np.log(6.4) / 27
_LEAST_POWER = 1e-10
_BLOCK = 4096  # frames at once: a frame overlaps the next ones, and a long clip would fill the memory
_RANGE = 8.0  # in powers of ten below the loudest


@dataclasses.dataclass(frozen=True, slots=True)
class MelSettings:
    """How samples become frames of `num_mels` numbers; frames begin hop_length samples apart."""

    num_mels: int
    sample_rate: int
    n_fft: int
    hop_length: int
    max_samples: int  # of what an encoder reads at once

    def log_mel(self, samples: np.ndarray) -> np.ndarray:
        """samples (n,) -> (num_mels, n // hop_length) float32, about -1 to 1: see transformers' WhisperFeatureExtractor.

        Both ends are mirrored, so there have to be more than n_fft / 2 samples.
        """
        half = self.n_fft // 2
        assert len(samples) > half
        padded = np.pad(samples, half, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.n_fft)[:: self.hop_length][:-1]
        blocks = [self._mel(frames[first : first + _BLOCK]) for first in range(0, len(frames), _BLOCK)]
        logs = np.log10(np.maximum(np.concatenate(blocks), _LEAST_POWER))
        logs = np.maximum(logs, logs.max() - _RANGE)
        return np.ascontiguousarray(((logs + 4) / 4).T, np.float32)

    def _mel(self, frames: np.ndarray) -> np.ndarray:
        """frames (F, n_fft) -> power (F, num_mels)."""
        spectrum = np.fft.rfft(frames.astype(np.float64) * _hann(self.n_fft), axis=1)
        power = spectrum.real**2 + spectrum.imag**2  # (F, n_fft / 2 + 1)
        return power @ _mel_filters(self.num_mels, self.n_fft, self.sample_rate)


def read_mel(settings: Settings, num_mels: int) -> MelSettings:
    """The settings of a feature extractor; `num_mels` where it does not say."""
    sample_rate = settings.integer("sampling_rate", 16000)
    return MelSettings(
        num_mels=settings.integer("feature_size", num_mels),
        sample_rate=sample_rate,
        n_fft=settings.integer("n_fft", 400),
        hop_length=settings.integer("hop_length", 160),
        max_samples=settings.integer("chunk_length", 30) * sample_rate,
    )


@functools.lru_cache(maxsize=4)
def _hann(length: int) -> np.ndarray:
    """The periodic Hann window (length,)."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


@functools.lru_cache(maxsize=4)
def _mel_filters(num_mels: int, n_fft: int, sample_rate: int) -> np.ndarray:
    """(n_fft / 2 + 1, num_mels): triangles that overlap by half, each of area 1."""
    frequencies = np.linspace(0, sample_rate // 2, n_fft // 2 + 1)[:, None]
    corners = _mel_to_hz(np.linspace(0, _hz_to_mel(_MAX_FREQUENCY), num_mels + 2))
    low, peak, high = corners[:-2], corners[1:-1], corners[2:]
    triangles = np.minimum((frequencies - low) / (peak - low), (high - frequencies) / (high - peak))
    return np.maximum(triangles, 0) * (2 / (high - low))


def _hz_to_mel(frequency: float) -> float:
    return _KNEE / _LINEAR_STEP + np.log(frequency / _KNEE) / _LOG_STEP


def _mel_to_hz(mels: np.ndarray) -> np.ndarray:
    knee = _KNEE / _LINEAR_STEP
    return np.where(mels < knee, mels * _LINEAR_STEP, _KNEE * np.exp(_LOG_STEP * (mels - knee)))
