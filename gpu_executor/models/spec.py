"""Owns what a model is, as data: facts of the maths, never about a checkpoint's names.

Shape letters, here and wherever a docstring gives a shape: T tokens in the batch, R sequences in the batch, H query
heads, G kv heads, K head_dim, D hidden, F mlp, E experts, V vocabulary, B blocks, S block_size, L layers.

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
class Rope:
    """Rotary positions over the first 2 * len(frequencies) of K, pairs (i, i + half); scaling is in the numbers."""

    frequencies: tuple[float, ...]  # radians per position, of each pair
    magnitude: float = 1.0  # cosines and sines are multiplied by it


@dataclasses.dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention over a paged KV cache, in groups of num_heads / num_kv_heads query heads per kv head."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None = None
    window: int | None = None  # keys that a query sees, itself included


@dataclasses.dataclass(frozen=True, slots=True)
class Mlp:
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where there is no gate."""

    size: int
    act: str = "silu"


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """x += mixer(norm1(x)); x += mlp(norm2(x))."""

    mixer: Attention
    mlp: Mlp


@dataclasses.dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A stack of layers between an embedding and a head."""

    layers: tuple[Layer, ...]
    norm: Norm
    hidden_size: int
    tied: bool = False  # the head is the embedding
    num_positions: int = 0  # rows of the learned position table; 0: none


@dataclasses.dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model: its decoder, and what it takes and gives."""

    architecture: str
    decoder: DecoderSpec
    vocab_size: int
    max_model_len: int  # most tokens of prompt and output together
