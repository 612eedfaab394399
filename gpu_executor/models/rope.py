"""Owns rotary positions: reads every rope scaling that configs name, and turns a Rope into tables for the kernels.

Formulas as in the papers that spec.py cites and in transformers' modeling_rope_utils. Where a scaling depends on the
length of the request there, it is decided here once, from max_model_len, as in vLLM; but LongRoPE's short or long factors
are taken as each sequence needs them, as in transformers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from forebay.errors import CheckpointError
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.spec import LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling

# ---- from config.json to a Rope ---------------------------------------------------------------------------------------


def read_rope(config: ConfigReader, dim: int, *, default_theta: float = 10000.0) -> Rope:
    """The Rope of a config: `rope_theta` with `rope_scaling`, or `rope_parameters`, as newer configs write both."""
    if dim % 2:
        raise CheckpointError(f"config.json rotates {dim} dimensions of a head; it must be an even number")
    parameters = _parameters(config)
    theta = parameters.number("rope_theta", default=None) or config.number("rope_theta", default=default_theta)
    rope = _SCALINGS[_kind(parameters)](parameters, config, dim, theta)
    return dataclasses.replace(rope, sections=_read_sections(parameters, dim))


def rotary_dim(config: ConfigReader, head_dim: int) -> int:
    """How many dimensions of a head rotate: its `partial_rotary_factor`, in the parameters of the rope or beside them."""
    part = _parameters(config).number("partial_rotary_factor", default=None)
    part = part or config.number("partial_rotary_factor", default=1.0)
    if part > 1:
        raise config.wrong(("partial_rotary_factor",), part, "at most 1")
    return int(head_dim * part)


def read_context(config: ConfigReader) -> int:
    """Most tokens at once for a model with rope: `max_position_embeddings`, stretched by its scaling as in vLLM.

    linear and yarn stretch it. dynamic does where the operator asks for more: below, nothing must change.
    """
    longest = config.integer("max_position_embeddings")
    parameters = _parameters(config)
    kind = _kind(parameters)
    stretched = longest
    if kind in ("linear", "dynamic"):
        stretched = int(longest * parameters.number("factor"))
    elif kind == "yarn":
        stretched = max(longest, int(_trained_len(parameters, config) * _yarn_factor(parameters, config)))
    return config.context(longest if kind == "dynamic" else stretched, max(longest, stretched))


def read_score_scale(config: ConfigReader) -> float:
    """What attention scores are multiplied by, beyond 1 / sqrt(K), where yarn has a `mscale_all_dim` (DeepSeek-V2)."""
    parameters = _parameters(config)
    weight = parameters("mscale_all_dim", default=0)
    return _mscale(_yarn_factor(parameters, config), weight) ** 2 if weight and _kind(parameters) == "yarn" else 1.0


def _parameters(config: ConfigReader) -> ConfigReader:
    """`rope_scaling` where there is one, since that is what operators override; its theta may lie in the other."""
    new, classic = config.section("rope_parameters"), config.section("rope_scaling")
    if not classic.data:
        return new
    theta = {"rope_theta": new.data["rope_theta"]} if new.has("rope_theta") else {}
    return ConfigReader(theta | classic.data, config.max_model_len, classic.where)


def _kind(parameters: ConfigReader) -> str:
    kind = parameters("rope_type", "type", default="default")
    if kind not in _SCALINGS:
        raise parameters.wrong(("rope_type", "type"), kind, f"one of {', '.join(sorted(_SCALINGS))}")
    return kind


def _trained_len(parameters: ConfigReader, config: ConfigReader) -> int:
    """The context before scaling; a key beside rope_scaling wins over one in it, as in transformers."""
    name = "original_max_position_embeddings"
    inner = parameters.integer(name, default=None) or config.integer("max_position_embeddings")
    return config.integer(name, default=inner)


def _read_sections(p: ConfigReader, dim: int) -> tuple[int, ...]:
    """`mrope_section` of M-RoPE: how many pairs turn with each axis, one axis after the other."""
    sections = p("mrope_section", default=[])
    if not isinstance(sections, list) or not all(type(n) is int and n > 0 for n in sections):
        raise p.wrong(("mrope_section",), sections, "a list of whole numbers above 0")
    if sections and sum(sections) != dim // 2:
        raise p.wrong(("mrope_section",), sections, f"numbers of pairs that sum up to {dim // 2}")
    if p.flag("mrope_interleaved", default=False):
        raise p.wrong(("mrope_interleaved",), True, "false")
    return tuple(sections)


def _read_default(p: ConfigReader, config: ConfigReader, dim: int, theta: float) -> Rope:
    return Rope(dim, theta)


def _read_linear(p: ConfigReader, config: ConfigReader, dim: int, theta: float) -> Rope:
    return Rope(dim, theta, LinearScaling(p.number("factor")))


def _read_dynamic(p: ConfigReader, config: ConfigReader, dim: int, theta: float) -> Rope:
    """Dynamic NTK. Up to the trained length nothing changes; a server that takes more has vLLM's larger theta throughout.

    transformers grows theta with each request and leaves the keys in its cache as they were: no two engines agree there.
    """
    trained, factor = config.integer("max_position_embeddings"), p.number("factor")
    if (config.max_model_len or 0) > trained:
        theta *= (factor * factor - (factor - 1)) ** (dim / (dim - 2))  # the theta for a length of factor * trained
    return Rope(dim, theta)


def _read_llama3(p: ConfigReader, config: ConfigReader, dim: int, theta: float) -> Rope:
    low, high = p.number("low_freq_factor"), p.number("high_freq_factor")
    return Rope(dim, theta, Llama3Scaling(p.number("factor"), low, high, _trained_len(p, config)))


def _yarn_factor(p: ConfigReader, config: ConfigReader) -> float:
    return p.number("factor", default=None) or config.integer("max_position_embeddings") / _trained_len(p, config)


def _read_yarn(p: ConfigReader, config: ConfigReader, dim: int, theta: float) -> Rope:
    factor = _yarn_factor(p, config)
    magnitude = p.number("attention_factor", default=None)
    if magnitude is None:
        weight, weight_all = p("mscale", default=0), p("mscale_all_dim", default=0)
        both = weight and weight_all
        magnitude = _mscale(factor, weight) / _mscale(factor, weight_all) if both else _mscale(factor, 1.0)
    scaling = YarnScaling(
        factor, _trained_len(p, config), p.number("beta_fast", default=32.0), p.number("beta_slow", default=1.0),
        p.flag("truncate", default=True), magnitude,
    )  # fmt: skip
    return Rope(dim, theta, scaling)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _read_longrope(p: ConfigReader, config: ConfigReader, dim: int, theta: float) -> Rope:
    """Short factors up to the trained length, long ones beyond: which of them, the length of each sequence decides."""
    longest, trained = config.integer("max_position_embeddings"), _trained_len(p, config)
    factor = p.number("factor", default=None) or longest / trained
    found: list[tuple[tuple[float, ...], float]] = []
    for length in ("short", "long"):
        name = f"{length}_factor"
        factors = p(name)
        if not isinstance(factors, list) or len(factors) != dim // 2 or not all(_is_positive(f) for f in factors):
            raise p.wrong((name,), factors, f"a list of {dim // 2} numbers above 0, one for each pair")
        magnitude = p.number(
            f"{length}_mscale", "attention_factor", default=None
        )  # Phi-3.5-MoE says one for each length
        if magnitude is None:
            magnitude = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
        found.append((tuple(map(float, factors)), magnitude))
    return Rope(dim, theta, LongRopeScaling(*found[0], *found[1], trained))


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


_SCALINGS: dict[str, Callable[[ConfigReader, ConfigReader, int, float], Rope]] = {
    "default": _read_default,
    "mrope": _read_default,  # what Qwen2-VL calls it
    "linear": _read_linear,
    "dynamic": _read_dynamic,
    "llama3": _read_llama3,
    "yarn": _read_yarn,
    "longrope": _read_longrope,
    "su": _read_longrope,  # the first name of longrope
}

# ---- from a Rope to numbers -------------------------------------------------------------------------------------------


class RopeTables:
    """The tables of a model's ropes on its device, one for all layers with the same.

    Where sequences beyond `long_from` rotate in another way (LongRoPE), theirs are the rows from long_from on: position p of
    such a sequence has row long_from + p.
    """

    def __init__(self, num_positions: int, device: torch.device, long_from: int | None = None) -> None:
        self._num_positions, self._device, self._long_from = num_positions, device, long_from
        self._tables: dict[Rope, torch.Tensor] = {}

    def __call__(self, rope: Rope) -> torch.Tensor:
        """(P, dim) float32, as cos_sin_table gives it; (long_from + P, dim) where there are two kinds of sequences."""
        if rope not in self._tables:
            table = cos_sin_table(rope, self._num_positions)
            if self._long_from is not None:
                scaling = rope.scaling
                long = dataclasses.replace(rope, scaling=scaling.long) if isinstance(scaling, LongRopeScaling) else rope
                table = torch.cat((table[: self._long_from], cos_sin_table(long, self._num_positions)))
            self._tables[rope] = table.to(self._device)
        return self._tables[rope]


def cos_sin_table(rope: Rope, num_positions: int) -> torch.Tensor:
    """(P, dim) float32: cosines of all pairs, then sines; what kernels.rope_kv_write takes."""
    inverse, magnitude = frequencies(rope)
    angles = torch.arange(num_positions, dtype=torch.float32)[:, None] * inverse  # (P, dim / 2)
    return torch.cat((angles.cos(), angles.sin()), -1) * magnitude


def rotate_by_axes(cos_sin: torch.Tensor, axes: torch.Tensor, sections: tuple[int, ...]) -> torch.Tensor:
    """cos_sin (P, dim), positions on each axis (A, T) -> (T, dim): the first sections[0] pairs turn with axis 0, and so on."""
    num_pairs = cos_sin.shape[1] // 2
    counts = torch.tensor(sections, device=axes.device)
    axis_of_pair = torch.arange(len(sections), device=axes.device).repeat_interleave(counts, output_size=num_pairs)
    positions = axes[axis_of_pair].T  # (T, dim / 2)
    pairs = torch.arange(num_pairs, device=axes.device)
    return torch.cat((cos_sin[positions, pairs], cos_sin[positions, pairs + num_pairs]), -1)


def frequencies(rope: Rope) -> tuple[torch.Tensor, float]:
    """(dim / 2,) float32 radians per position of each pair, and what cosines and sines are multiplied by."""
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim
    periods = rope.theta**exponents  # float32, in the order of operations of the models' own code
    match rope.scaling:
        case None:
            return 1.0 / periods, 1.0
        case LinearScaling(factor):
            return 1.0 / periods / factor, 1.0
        case LongRopeScaling(factors, magnitude, _, _, _):
            return 1.0 / (torch.tensor(factors) * periods), magnitude
        case Llama3Scaling():
            return _llama3_frequencies(1.0 / periods, rope.scaling), 1.0
        case YarnScaling():
            return _yarn_frequencies(1.0 / periods, rope, rope.scaling), rope.scaling.magnitude


def _llama3_frequencies(inverse: torch.Tensor, s: Llama3Scaling) -> torch.Tensor:
    wavelength = 2 * math.pi / inverse
    smooth = (s.trained_len / wavelength - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    between = (1 - smooth) * inverse / s.factor + smooth * inverse
    longest, shortest = s.trained_len / s.low_freq_factor, s.trained_len / s.high_freq_factor
    scaled = torch.where(wavelength > longest, inverse / s.factor, inverse)
    return torch.where((wavelength <= longest) & (wavelength >= shortest), between, scaled)


def _yarn_frequencies(inverse: torch.Tensor, rope: Rope, s: YarnScaling) -> torch.Tensor:
    def pair_of(rotations: float) -> float:
        """The pair that turns so often within the trained length."""
        return rope.dim * math.log(s.trained_len / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_of(s.beta_fast), pair_of(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return inverse / s.factor * ramp + inverse * (1 - ramp)  # ramp 0: as trained, 1: stretched
