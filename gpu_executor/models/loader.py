"""Owns loading: config to spec, checkpoint tensors through rules into the weights' slots.

file ─▶ rule ─▶ reshape ─▶ canonical name ─▶ shape check against the spec ─▶ slot of a fused weight
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from forebay.errors import CheckpointError
from gpu_executor.models import registry
from gpu_executor.models.checkpoint import FLOAT_DTYPES, Checkpoint, StoredTensor
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.decoder import Decoder
from gpu_executor.models.names import Role, Shape, find, is_of_head, is_of_linear, required
from gpu_executor.models.registry import Resolved
from gpu_executor.models.rules import Match, match_names, rows_of_parts
from gpu_executor.models.weights import Weights
from gpu_executor.quant.checkpoint import QuantizedCheckpoint
from gpu_executor.quant.config import read_scheme
from gpu_executor.quant.matrix import QuantizedMatrix
from kernels.quantized_linear import select_rows

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DUMMY_STD = 0.02
_DUMMY_BLOCK = 1 << 20  # random numbers that are drawn; larger tensors repeat them


def resolve_dtype(
    name: str, config: dict[str, Any], device: torch.device, *, folder: Path | None = None
) -> torch.dtype:
    """The dtype of a flag. "auto" is the checkpoint's own: what config.json says, else what most of its bytes are in.

    vLLM's "auto" makes float16 or bfloat16 of float32 checkpoints; here they stay what they are, on every device.
    """
    if name == "auto":
        declared = config.get("dtype") or config.get("torch_dtype")
        if declared is None and folder is not None:
            return _most_common_dtype(folder)
        name = str(declared or "float32").removeprefix("torch.")
    if name not in _DTYPES:
        raise CheckpointError(f"dtype {name[:100]!r} is none of {', '.join(_DTYPES)}; choose one with --dtype")
    return _DTYPES[name]


def _most_common_dtype(folder: Path) -> torch.dtype:
    sizes: collections.Counter[str] = collections.Counter()
    for tensor in Checkpoint(folder).tensors.values():
        if tensor.dtype in FLOAT_DTYPES:  # of a quantized checkpoint, what is not
            sizes[tensor.dtype] += math.prod(tensor.shape)
    dtype = FLOAT_DTYPES[sizes.most_common(1)[0][0]] if sizes else None
    return dtype if dtype in _DTYPES.values() else torch.float32


def load_model(
    folder: Path,
    config: dict[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device,
    load_format: str = "auto",
    seed: int = 0,
    max_model_len: int | None = None,
    task: str | None = None,
    with_head: bool = False,
    parts: Mapping[str, Path] | None = None,
    keep_quantized: bool | None = None,
    progress: bool = True,
) -> Decoder:
    """The model of a folder, ready to run; `task` and `with_head` as in registry.resolve.

    `parts` are the folders of sections of the config whose weights lie elsewhere. `keep_quantized`: whether matrices that
    are quantized stay so in memory, where they can; by default on a GPU, whose kernel widens them on the way. On a CPU
    they would have to be made plain for every step.

    Raises UnknownArchitecture, or CheckpointError naming the key, file or tensor that is wrong. "dummy" needs no weight
    files: it draws random weights.
    """
    resolved = read_model(config, max_model_len, task, with_head=with_head)
    if load_format == "dummy":
        weights = Weights(resolved.spec, required(resolved.spec, resolved.extras), dtype, device)
        _fill_dummy(weights, seed)
    else:
        checkpoint = open_checkpoint(folder, config, resolved, parts or {})
        keep = device.type == "cuda" if keep_quantized is None else keep_quantized
        weights = _load_weights(checkpoint, resolved, dtype, device, keep_quantized=keep, progress=progress)
    return Decoder(resolved.spec, weights, dtype, device)


def read_model(
    config: dict[str, Any], max_model_len: int | None, task: str | None = None, *, with_head: bool = False
) -> Resolved:
    """What a config.json says, for a task as in registry.resolve. Raises NotOffered for a quantization that is not served."""
    reader = ConfigReader(config, max_model_len)
    resolved = registry.resolve(reader, task, with_head=with_head)
    read_scheme(reader)
    return resolved


def open_checkpoint(
    folder: Path, config: dict[str, Any], resolved: Resolved, parts: Mapping[str, Path]
) -> Checkpoint | QuantizedCheckpoint:
    """The weights of a folder, with those of parts that lie elsewhere; of a quantized one, a tensor for each matrix."""
    checkpoint = Checkpoint(folder)
    for section, prefix in resolved.parts:
        if section in parts:
            checkpoint.add_part(prefix, Checkpoint(parts[section]))
    scheme = read_scheme(ConfigReader(config))
    if scheme is None:
        return checkpoint
    quantized = QuantizedCheckpoint(checkpoint, scheme)
    quantized.drop_padding(lambda name: _takes(resolved, name))
    return quantized


def _takes(resolved: Resolved, name: str) -> bool:
    """Whether the model has a place for a checkpoint's tensor of this name."""
    for rule in resolved.rules:
        if found := re.fullmatch(rule.pattern, name):
            return all(find(found.expand(target), resolved.spec) is not None for target in rule.targets)
    return False


def _load_weights(
    checkpoint: Checkpoint | QuantizedCheckpoint,
    resolved: Resolved,
    dtype: torch.dtype,
    device: torch.device,
    *,
    keep_quantized: bool,
    progress: bool,
) -> Weights:
    """Tensors are mapped, not read: what is copied goes straight to its slot, so that the peak is one model."""
    matches = {match.source: match for match in match_names(checkpoint.tensors, resolved.rules)}
    sources = _check_names(matches, resolved)
    rows = {}
    if keep_quantized and isinstance(checkpoint, QuantizedCheckpoint):
        rows = _rows_of_linear(checkpoint, matches, resolved)
    weights = Weights(resolved.spec, sources, dtype, device, packed=rows)
    fill_weights(weights, checkpoint, matches, sources, rows, description="loading weights", progress=progress)
    return weights


def _rows_of_linear(
    checkpoint: QuantizedCheckpoint, matches: dict[str, Match], resolved: Resolved
) -> dict[str, torch.Tensor]:
    """Canonical names of matrices that can stay quantized, each with the rows of its source that it is."""
    found = {}
    for source, match in matches.items():
        if not any(map(is_of_linear, match.targets)):
            continue
        if not checkpoint.has_rows_of_outputs(source, inputs_first=match.rule.inputs_first):
            continue
        num_rows, din = checkpoint.tensors[source].shape
        for target, rows in (rows_of_parts(match, num_rows) or {}).items():
            role_and_shape = find(target, resolved.spec)
            # One of another shape takes the way of plain tensors, which refuses it.
            if is_of_linear(target) and role_and_shape is not None and role_and_shape[1] == (len(rows), din):
                found[target] = rows
    return found


def fill_weights(
    weights: Weights,
    checkpoint: Checkpoint | QuantizedCheckpoint,
    matches: dict[str, Match],
    sources: dict[str, str],
    rows: Mapping[str, torch.Tensor],
    *,
    description: str,
    progress: bool,
) -> None:
    """Fills the slots that `sources` names, from each canonical name's tensor; `matches` by the checkpoint's names.

    `rows` are those of its source that a matrix is which stays quantized.
    """
    wanted = list(dict.fromkeys(sources.values()))
    sizes = {name: math.prod(checkpoint.tensors[name].shape) * weights.dtype.itemsize for name in wanted}

    def fill(stored: tuple[str, torch.Tensor | QuantizedMatrix]) -> int:
        source, tensor = stored
        match = matches[source]
        plain = [target for target in match.targets if target in sources and target not in weights.packed]
        if isinstance(tensor, QuantizedMatrix):
            packed = tensor.pack(weights.device)
            for target in weights.packed.intersection(match.targets):
                whole = match.rule.reshape is None
                weights.put(target, packed if whole else select_rows(packed, rows[target].to(weights.device)))
            if not plain:
                return sizes[source]
            tensor = tensor.unpack(packed, weights.dtype, inputs_first=match.rule.inputs_first)
        for target, part in _parts(match, tensor):
            if target in plain:
                _fill(weights.slots[target], part, source, target)
        return sizes[source]

    with tqdm(
        total=sum(sizes.values()), desc=description, unit="B", unit_scale=True, disable=None if progress else True
    ) as bar:
        for num_bytes in _in_parallel(fill, checkpoint.read(wanted)):
            bar.update(num_bytes)


def _in_parallel(function: Callable[[Any], int], items: Iterable[Any]) -> Iterator[int]:
    """The results in order. Most of the time to load goes into touching memory for the first time, which threads share."""
    pool = concurrent.futures.ThreadPoolExecutor(min(4, torch.get_num_threads()))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _check_names(matches: dict[str, Match], resolved: Resolved) -> dict[str, str]:
    """The checkpoint's tensor for each canonical name: all that must be there, and nothing that the model cannot have."""
    sources: dict[str, str] = {}
    for match in matches.values():
        for target in match.targets:
            if target == "head.weight" and resolved.spec.decoder.tied:
                continue  # the embedding, stored a second time
            if is_of_head(target) and not resolved.spec.has_head:
                continue  # nothing is generated
            if find(target, resolved.spec) is None:
                raise CheckpointError(
                    f"tensor {match.source} would be {target}, which config.json's model does not have"
                )
            if target in sources:
                raise CheckpointError(f"tensors {sources[target]} and {match.source} are both {target}")
            sources[target] = match.source
    missing = [name for name in required(resolved.spec, resolved.extras) if name not in sources]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"the checkpoint has no tensor for {missing[0]}{more}")
    return sources


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
    if part.dtype not in FLOAT_DTYPES.values():
        raise CheckpointError(f"tensor {source} holds {part.dtype}, but config.json does not say how it is quantized")
    slot.copy_(part)


def _fill_dummy(weights: Weights, seed: int) -> None:
    """Small random weights, norms of one: fast, because large tensors repeat a block of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(_DUMMY_BLOCK, generator=generator) * _DUMMY_STD
    block = block.to(dtype=weights.dtype, device=weights.device)

    def fill(item: tuple[str, torch.Tensor]) -> int:
        name, slot = item
        if "norm" in name:
            slot.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith(".mixer.a"):
            slot.fill_(-1.0)  # a state space that does not decay grows without end
        else:
            for part in slot.view(-1).split(_DUMMY_BLOCK):
                part.copy_(block[: part.numel()])
        return slot.numel()

    collections.deque(_in_parallel(fill, weights.slots.items()), maxlen=0)


@dataclasses.dataclass(frozen=True, slots=True)
class WeightRow:
    """A line of `forebay describe`: where a tensor comes from and what it becomes."""

    stored: StoredTensor
    rule: str
    canonical: str  # empty if the tensor is skipped, as are the next two
    role: Role | None
    shape: Shape | None


def weight_table(
    folder: Path,
    config: dict[str, Any],
    max_model_len: int | None = None,
    task: str | None = None,
    parts: Mapping[str, Path] | None = None,
) -> tuple[Resolved, list[WeightRow]]:
    """The resolved model and its tensors with their rules, from the headers alone: no weights are read."""
    resolved = read_model(config, max_model_len, task)
    checkpoint = open_checkpoint(folder, config, resolved, parts or {})
    rows = []
    for match in match_names(checkpoint.tensors, resolved.rules):
        stored = checkpoint.tensors[match.source]
        for target in match.targets or ("",):
            role, shape = find(target, resolved.spec) or (None, None)
            rows.append(WeightRow(stored, str(match.rule), target, role, shape))
    return resolved, rows
