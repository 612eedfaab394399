"""Owns what a model is, as data: facts of the maths, never about a checkpoint's names.

Shape letters, here and wherever a docstring gives a shape: T tokens in the batch, R sequences in the batch, H query
heads, G kv heads, K head_dim, D hidden, F mlp, E experts, V vocabulary, B blocks, S block_size, L layers, P positions.

A tensor that may or may not exist (a bias, a gate, a norm of queries) is no field here: its presence decides.
"""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm or LayerNorm."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6


@dataclasses.dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation (Chen et al., 2023): all frequencies are divided."""

    factor: float


@dataclasses.dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1: slow pairs are divided by the factor, fast ones are left as they are, with a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    trained_len: int


@dataclasses.dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al., 2023): as Llama3Scaling with another ramp, and larger cosines and sines."""

    factor: float
    trained_len: int
    beta_fast: float
    beta_slow: float
    truncate: bool  # the ramp begins and ends at whole pairs
    magnitude: float  # cosines and sines are multiplied by it


@dataclasses.dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """LongRoPE (Ding et al., 2024): each pair is divided by a factor of its own."""

    factors: tuple[float, ...]
    magnitude: float  # cosines and sines are multiplied by it


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclasses.dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions (Su et al., 2021) over the first `dim` of K, in pairs (i, i + dim / 2)."""

    dim: int
    theta: float
    scaling: RopeScaling | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Alibi:
    """Attention with linear biases (Press et al., 2021): each head adds slope * (key position - query position)."""

    slopes: tuple[float, ...]  # (H)


@dataclasses.dataclass(frozen=True, slots=True)
class Learned:
    """A table of positions, added to the embedding."""

    num_positions: int


@dataclasses.dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention over a paged KV cache, in groups of num_heads / num_kv_heads query heads per kv head."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    positions: Rope | Alibi | None = None
    window: int | None = None  # keys that a query sees, itself included


@dataclasses.dataclass(frozen=True, slots=True)
class Mlp:
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where there is no gate."""

    size: int
    act: str = "silu"


Mixer = Attention  # another mixer joins as a union, with a class in mixers/
FeedForward = Mlp  # likewise, with a class in layers/
Residual = Literal["sequential", "parallel", "post_norm"]


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """A mixer and a feed-forward layer around one residual stream; models/block.py draws the three forms."""

    mixer: Mixer
    mlp: FeedForward
    residual: Residual = "sequential"


@dataclasses.dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A stack of layers between an embedding and a head."""

    layers: tuple[Layer, ...]
    norm: Norm
    hidden_size: int
    positions: Learned | None = None
    tied: bool = False  # the head is the embedding


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model: its decoder, and what it takes and gives."""

    architecture: str
    decoder: DecoderSpec
    vocab_size: int
    max_model_len: int  # most tokens of prompt and output together
