"""Log-mel spectrograms are those of transformers' feature extractor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from preprocess.processors.mel import read_mel
from preprocess.processors.settings import Settings


def tone(num_samples: int) -> np.ndarray:
    """Two tones in noise, one of them fading."""
    time = np.arange(num_samples) / 16000
    noise = np.random.default_rng(0).standard_normal(num_samples)
    sound = np.sin(2 * np.pi * 440 * time) * np.exp(-3 * time) + 0.3 * np.sin(2 * np.pi * 2500 * time) + 0.01 * noise
    return (0.5 * sound).astype(np.float32)


@pytest.mark.parametrize(
    "settings", [{"feature_size": 80}, {"feature_size": 128}, {"n_fft": 512, "hop_length": 200}], ids=str
)
@pytest.mark.parametrize("num_samples", [16000, 4321])
def test_frames_are_those_of_transformers(settings: dict[str, Any], num_samples: int) -> None:
    reference = WhisperFeatureExtractor(**settings)
    wanted = reference(tone(num_samples), sampling_rate=16000, padding="longest", return_tensors="np")[
        "input_features"
    ][0]
    found = read_mel(Settings(settings, "preprocessor_config.json"), 80).log_mel(tone(num_samples))
    assert (found.shape, found.dtype) == (wanted.shape, np.float32)
    np.testing.assert_allclose(found, wanted, atol=2e-4)  # what float32 makes of the faintest


def test_silence_is_a_number() -> None:
    silent = read_mel(Settings({}, "preprocessor_config.json"), 80).log_mel(np.zeros(3200, np.float32))
    assert (silent == -1.5).all()
