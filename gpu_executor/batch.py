"""Owns the shape of a step's input: a ragged batch, all tokens in a row, with where each sequence begins."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Everything the model needs for one step, on the model's device. T tokens of R sequences.

    Sequence r has rows query_start[r] to query_start[r + 1], which are the last of its seq_lens[r] tokens; its KV in the
    layers of group g lies in the blocks block_tables[g][r]. There, token t goes to slot slot_mappings[g][t] = block *
    block_size + offset. A sequence all of whose tokens are in the step (seq_lens equals its rows) begins now: its fixed-size
    state holds nothing yet.
    """

    token_ids: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64; tokens of media may share one
    query_start: torch.Tensor  # (R + 1,) int32
    seq_lens: torch.Tensor  # (R,) int32, the step's tokens counted in
    block_tables: tuple[torch.Tensor, ...]  # (R, M) int32 of each group of layers
    state_slots: torch.Tensor  # (R,) int64, where each sequence's fixed-size state lies
    slot_mappings: tuple[torch.Tensor, ...]  # (T,) int64 of each group of layers
    cross: CrossBatch | None = None  # of encoder-decoder models
    segments: torch.Tensor | None = None  # (T,) int64, of models that have token types
    features: Features | None = None  # of media in the prompts
    axes: torch.Tensor | None = None  # (3, T) int64: time, height and width, of models that rotate by them
    rotation: Rotation | None = None  # made of `axes`, once for all layers
    whole: tuple[int, ...] = ()  # sequences whose tokens all see each other, whichever comes first


@dataclasses.dataclass(frozen=True, slots=True)
class Features:
    """Rows of the step whose token embeddings media replaces."""

    rows: torch.Tensor  # (n,) int64
    values: torch.Tensor  # (n, D)


@dataclasses.dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of each token of the step, where a position is more than a number."""

    cos_sin: torch.Tensor  # (T, rope_dim) float32
    rows: torch.Tensor  # (T,) int64: 0, 1, 2, …


@dataclasses.dataclass(frozen=True, slots=True)
class CrossBatch:
    """What the step's tokens read of what was encoded, and what is encoded in this step.

    Tokens that read the same are together: run r is query_start[r] to query_start[r + 1] of `rows`, and its keys are
    seq_lens[r] encoded ones in the blocks block_table[r]. `encoder` holds an encoder's input of the sequences that begin, in
    the num_encoder_blocks blocks of a cache that lives for the step alone, and `encoded` what other models made of media;
    what cross attention makes of their row t goes to slot slot_mapping[t] of the decoder's caches.
    """

    query_start: torch.Tensor  # (R' + 1,) int32
    seq_lens: torch.Tensor  # (R',) int32
    block_table: torch.Tensor  # (R', M') int32
    block_size: int
    rows: torch.Tensor | None = None  # (T'',) int64: tokens that read something; None if all do
    passes_mlp: torch.Tensor | None = None  # (T'', 1), 1 or 0: whether a gated layer's MLP counts; None if all do
    encoder: Batch | None = None
    num_encoder_blocks: int = 0
    encoded: torch.Tensor | None = None  # (T', D)
    slot_mapping: torch.Tensor | None = None  # (T',) int64; None if nothing is encoded in this step
