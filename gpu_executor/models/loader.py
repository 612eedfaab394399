"""Owns loading: config to spec, checkpoint tensors through rules into the weights' slots.

file ─▶ rule ─▶ reshape ─▶ canonical name ─▶ shape check against the spec ─▶ slot of a fused weight
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from forebay.errors import CheckpointError
from gpu_executor.models import registry
from gpu_executor.models.checkpoint import Checkpoint, StoredTensor
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.decoder import Decoder
from gpu_executor.models.names import Role, find, required
from gpu_executor.models.registry import Resolved
from gpu_executor.models.rules import Match, match_names
from gpu_executor.models.weights import Weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DUMMY_STD = 0.02
_DUMMY_BLOCK = 1 << 20  # random numbers that are drawn; larger tensors repeat them


def resolve_dtype(name: str, config: dict[str, Any], device: torch.device) -> torch.dtype:
    """The dtype of a flag; "auto" is the checkpoint's own, float32 where config.json does not say."""
    if name == "auto":
        name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise CheckpointError(f"dtype {name!r} is none of {', '.join(_DTYPES)}; choose one with --dtype")
    return _DTYPES[name]


def load_model(
    folder: Path,
    config: dict[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device,
    load_format: str = "auto",
    seed: int = 0,
    max_model_len: int | None = None,
    progress: bool = True,
) -> Decoder:
    """The model of a folder, ready to run.

    Raises UnknownArchitecture, or CheckpointError naming the key, file or tensor that is wrong. "dummy" needs no weight
    files: it draws random weights.
    """
    resolved = registry.resolve(ConfigReader(config, max_model_len))
    if load_format == "dummy":
        weights = Weights(resolved.spec, set(required(resolved.spec.decoder, resolved.extras)), dtype, device)
        _fill_dummy(weights, seed)
    else:
        weights = _load_weights(Checkpoint(folder), resolved, dtype, device, progress=progress)
    return Decoder(resolved.spec, weights, dtype, device)


def _load_weights(
    checkpoint: Checkpoint, resolved: Resolved, dtype: torch.dtype, device: torch.device, *, progress: bool
) -> Weights:
    matches = {match.source: match for match in match_names(checkpoint.tensors, resolved.rules)}
    names = {target for match in matches.values() for target in match.targets}
    if resolved.spec.decoder.tied:
        names.discard("head.weight")  # stored a second time
    _check_names(names, matches, resolved)
    weights = Weights(resolved.spec, names, dtype, device)
    filled: dict[str, str] = {}
    sources = [match.source for match in matches.values() if any(target in names for target in match.targets)]
    with tqdm(total=len(sources), desc="loading weights", unit="tensor", disable=None if progress else True) as bar:
        for source, tensor in checkpoint.read(sources):
            for target, part in _parts(matches[source], tensor):
                if target in filled:
                    raise CheckpointError(f"tensors {filled[target]} and {source} are both {target}")
                filled[target] = source
                _fill(weights.slots[target], part, source, target)
            bar.update()
    return weights


def _parts(match: Match, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    try:
        parts = match.rule.reshape(tensor) if match.rule.reshape is not None else (tensor,)
    except CheckpointError as error:
        raise CheckpointError(f"tensor {match.source} has shape {list(tensor.shape)}: {error.message}") from None
    return list(zip(match.targets, parts, strict=True))


def _fill(slot: torch.Tensor, part: torch.Tensor, source: str, target: str) -> None:
    if part.shape != slot.shape:
        raise CheckpointError(
            f"tensor {source} has shape {list(part.shape)} as {target}; config.json asks for {list(slot.shape)}"
        )
    if not part.dtype.is_floating_point:
        raise CheckpointError(f"tensor {source} holds {part.dtype}; quantized checkpoints are not served yet")
    slot.copy_(part)


def _check_names(names: set[str], matches: dict[str, Match], resolved: Resolved) -> None:
    """That all that must be there is there, and that nothing is there that the model cannot have."""
    for match in matches.values():
        for target in match.targets:
            if target in names and find(target, resolved.spec) is None:
                raise CheckpointError(
                    f"tensor {match.source} would be {target}, which config.json's model does not have"
                )
    missing = [name for name in required(resolved.spec.decoder, resolved.extras) if name not in names]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"the checkpoint has no tensor for {missing[0]}{more}")


def _fill_dummy(weights: Weights, seed: int) -> None:
    """Small random weights, norms of one: fast, because large tensors repeat a block of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(_DUMMY_BLOCK, generator=generator) * _DUMMY_STD
    for name, slot in weights.slots.items():
        if "norm" in name:
            slot.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        flat = slot.view(-1)
        for start in range(0, flat.numel(), _DUMMY_BLOCK):
            part = flat[start : start + _DUMMY_BLOCK]
            part.copy_(block[: part.numel()])


@dataclasses.dataclass(frozen=True, slots=True)
class WeightRow:
    """A line of `forebay describe`: where a tensor comes from and what it becomes."""

    stored: StoredTensor
    rule: str
    canonical: str  # empty if it is skipped
    role: Role | None


def weight_table(
    folder: Path, config: dict[str, Any], max_model_len: int | None = None
) -> tuple[Resolved, list[WeightRow]]:
    """The resolved model and its tensors with their rules, from the headers alone: no weights are read."""
    resolved = registry.resolve(ConfigReader(config, max_model_len))
    checkpoint = Checkpoint(folder)
    rows = []
    for match in match_names(checkpoint.tensors, resolved.rules):
        stored = checkpoint.tensors[match.source]
        for target in match.targets or ("",):
            found = find(target, resolved.spec) if target else None
            rows.append(WeightRow(stored, str(match.rule), target, found[0] if found else None))
    return resolved, rows
