"""Owns rotary frequencies: every rope scaling that configs name becomes numbers here.

Formulas as in the checkpoints' own papers and in transformers' modeling_rope_utils: RoPE (Su et al., 2021), position
interpolation (Chen et al., 2023), dynamic NTK, YaRN (Peng et al., 2023), Llama 3.1, LongRoPE (Ding et al., 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.spec import Rope

Parameters = dict[str, Any]


def read_rope(config: ConfigReader, rotary_dim: int, *, default_theta: float = 10000.0) -> Rope:
    """The Rope of a config: `rope_theta` with `rope_scaling`, or `rope_parameters`, as newer configs write both."""
    parameters: Parameters = dict(config("rope_scaling", default={})) | dict(config("rope_parameters", default={}))
    parameters.setdefault("rope_theta", config("rope_theta", default=default_theta))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    scale = _SCALINGS.get(kind)
    if scale is None:
        raise CheckpointError(f"rope scaling {kind!r} of config.json is none of {', '.join(sorted(_SCALINGS))}")
    try:
        frequencies, magnitude = scale(parameters, rotary_dim, config)
    except KeyError as error:
        raise CheckpointError(f"rope scaling {kind!r} of config.json has no {error}") from None
    return Rope(tuple(frequencies.tolist()), float(magnitude))


def cos_sin_table(rope: Rope, num_positions: int) -> torch.Tensor:
    """(P, rope_dim) float32: cosines of all pairs, then sines; what kernels.rope_kv_write takes."""
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * torch.tensor(rope.frequencies)
    return torch.cat((angles.cos(), angles.sin()), -1) * rope.magnitude


def _inverse(theta: float, dim: int) -> torch.Tensor:
    """(dim / 2,) float32."""
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))


def _default(p: Parameters, dim: int, config: ConfigReader) -> tuple[torch.Tensor, float]:
    return _inverse(p["rope_theta"], dim), 1.0


def _linear(p: Parameters, dim: int, config: ConfigReader) -> tuple[torch.Tensor, float]:
    return _inverse(p["rope_theta"], dim) / p["factor"], 1.0


def _dynamic(p: Parameters, dim: int, config: ConfigReader) -> tuple[torch.Tensor, float]:
    """Within the trained length nothing changes. Beyond it one base serves all lengths, that of the whole context.

    transformers grows the base with each request and leaves cached keys as they were; no two engines agree there.
    """
    trained = p.get("original_max_position_embeddings") or config.integer("max_position_embeddings")
    theta, factor = p["rope_theta"], p["factor"]
    length = max(trained, config.max_model_len or trained)
    if length > trained:
        theta *= (factor * length / trained - (factor - 1)) ** (dim / (dim - 2))
    return _inverse(theta, dim), 1.0


def _yarn(p: Parameters, dim: int, config: ConfigReader) -> tuple[torch.Tensor, float]:
    theta, factor = p["rope_theta"], p["factor"]
    trained = p.get("original_max_position_embeddings") or config.integer("max_position_embeddings")

    def mscale(scale: float, weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(scale) + 1.0 if scale > 1 else 1.0

    magnitude = p.get("attention_factor")
    if magnitude is None:
        weight, weight_all = p.get("mscale"), p.get("mscale_all_dim")
        magnitude = mscale(factor, weight) / mscale(factor, weight_all) if weight and weight_all else mscale(factor)

    def dim_of(rotations: float) -> float:
        """The pair that turns so often within the trained length."""
        return dim * math.log(trained / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dim_of(p.get("beta_fast") or 32), dim_of(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(
        0, 1
    )  # 0: as trained, 1: stretched
    inverse = _inverse(theta, dim)
    return inverse / factor * ramp + inverse * (1 - ramp), magnitude


def _llama3(p: Parameters, dim: int, config: ConfigReader) -> tuple[torch.Tensor, float]:
    inverse = _inverse(p["rope_theta"], dim)
    factor, low, high = p["factor"], p["low_freq_factor"], p["high_freq_factor"]
    trained = p["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inverse
    smooth = (trained / wavelength - low) / (high - low)
    between = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = torch.where(wavelength > trained / low, inverse / factor, inverse)
    return torch.where((wavelength <= trained / low) & (wavelength >= trained / high), between, scaled), 1.0


def _longrope(p: Parameters, dim: int, config: ConfigReader) -> tuple[torch.Tensor, float]:
    """Long factors if the context exceeds the trained length, short ones else: decided once, as in vLLM."""
    longest = config.integer("max_position_embeddings")
    trained = p.get("original_max_position_embeddings") or config("original_max_position_embeddings", default=longest)
    context = config.max_model_len or longest
    factors = torch.tensor(p["long_factor" if context > trained else "short_factor"], dtype=torch.float32)
    if len(factors) != dim // 2:
        raise CheckpointError(f"rope scaling 'longrope' has {len(factors)} factors for {dim // 2} pairs")
    factor = p.get("factor") or longest / trained
    magnitude = p.get("attention_factor")
    if magnitude is None:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    return 1.0 / (factors * p["rope_theta"] ** exponents), magnitude


_SCALINGS: dict[str, Callable[[Parameters, int, ConfigReader], tuple[torch.Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,  # the first name of longrope
}
