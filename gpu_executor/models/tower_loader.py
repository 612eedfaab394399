"""Owns loading a model's tower without the rest of the model: for a tier that sends rows of embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from forebay.errors import CheckpointError, NotOffered
from gpu_executor.models.loader import fill_weights, open_checkpoint, read_model
from gpu_executor.models.names import TOWER, tower_shapes
from gpu_executor.models.rules import match_names
from gpu_executor.models.stack import Embedding
from gpu_executor.models.towers.assembly import assemble
from gpu_executor.models.towers.tower import Embed, Tower
from gpu_executor.models.weights import Weights

_EMBEDDING = "embed.weight"


def load_tower(
    folder: Path,
    config: dict[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device,
    parts: Mapping[str, Path] | None = None,
    progress: bool = True,
) -> tuple[Tower, Embed]:
    """The tower of a folder's model, and the embedding, of which some towers put rows into what they give.

    `parts` as there. Raises as loader.load_model, and NotOffered for a model without a tower.
    """
    resolved = read_model(config, None)
    spec = dataclasses.replace(resolved.spec, decoder=dataclasses.replace(resolved.spec.decoder, layers=()))
    if spec.tower is None:
        raise NotOffered(f"{spec.architecture} takes text alone: it has no tower")
    checkpoint = open_checkpoint(folder, config, resolved, parts or {})
    wanted = {_EMBEDDING, *(TOWER + name for name in tower_shapes(spec))}
    matches = {
        match.source: match
        for match in match_names(checkpoint.tensors, resolved.rules)
        if not wanted.isdisjoint(match.targets)
    }
    found = {target: match.source for match in matches.values() for target in match.targets if target in wanted}
    if missing := sorted(wanted - found.keys()):
        raise CheckpointError(f"the checkpoint has no tensor for {missing[0]}")
    weights = Weights(spec, found, dtype, device)
    fill_weights(weights, checkpoint, matches, found, {}, description="loading tower", progress=progress)
    embedding = Embedding(weights.get(_EMBEDDING), spec.decoder.embed_scale)
    return assemble(spec.tower, weights.below(TOWER), device), embedding
