"""Owns the sample rates of sound: which are taken, and how one becomes another."""

from __future__ import annotations

import numpy as np

from preprocess.media.decoded import Audio
from preprocess.media.limits import unusable

MIN_RATE, MAX_RATE = 1_000, 384_000


def check_rate(rate: int) -> None:
    """Raises InvalidRequest (MEDIA_UNUSABLE) for a rate that no sound has."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise unusable(f"the sound has {rate:,} samples per second; it can have {MIN_RATE:,} to {MAX_RATE:,}")


def resampled(samples: np.ndarray, rate: int, wanted_rate: int | None) -> Audio:
    """One channel (samples,) float32 at the wanted rate, as librosa resamples: soxr's HQ filter, lengths rounded up."""
    if wanted_rate is None or rate == wanted_rate:
        return Audio(samples, rate)
    import soxr  # only who hears needs it

    result = np.zeros(-(-len(samples) * wanted_rate // rate), np.float32)
    found = soxr.resample(samples, rate, wanted_rate, quality="HQ")[: len(result)]
    result[: len(found)] = found
    return Audio(result, wanted_rate)
