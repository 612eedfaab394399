"""Owns `forebay describe`: what a checkpoint becomes, from its config and the headers of its files; no weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from forebay.cli.description_text import description_lines
from forebay.cli.parser import VerbParser
from forebay.errors import CheckpointError
from forebay.flags import add_flags, check_file_keys, read_config

if TYPE_CHECKING:
    import torch

    from gpu_executor.config import ExecutorConfig
    from gpu_executor.models.registry import Resolved

DESCRIPTION = """\
Shows what a checkpoint becomes: the resolved model, each weight with the tensor and the rule that make it, and memory.

Takes every flag of `forebay executor`, so that its command line can be tried out by changing the verb. Only config.json
and the headers of weight files are read; with --load-format dummy, config.json alone."""


@dataclasses.dataclass(frozen=True, slots=True)
class DescribedWeight:
    """A weight of the model, or a tensor that becomes none: then `name` is empty, and `shape` that of the tensor."""

    name: str  # canonical
    shape: tuple[int, ...]
    role: str
    source: str  # the tensor in the checkpoint, with its dtype; empty where weights are random, as is the rule
    rule: str


@dataclasses.dataclass(frozen=True, slots=True)
class Description:
    """What there is to say of a checkpoint under a config."""

    resolved: Resolved
    dtype: torch.dtype
    weights: list[DescribedWeight]
    missing: list[str]  # canonical names that no tensor becomes
    memory: StateMemory
    block_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class StateMemory:
    """What the layers keep between steps."""

    bytes_per_token: int  # in the blocks of the KV cache, one block of each group of layers
    bytes_per_sequence: int  # beside them, whatever the length
    windows: tuple[int | None, ...]  # of each group: tokens after which its blocks are given back; None: never
    num_layers_per_block: int


def main(arguments: Sequence[str]) -> int:
    """The exit status; raises ForebayError or ConfigError, also for a checkpoint that lacks tensors."""
    from gpu_executor.config import ExecutorConfig

    parser = VerbParser("describe", DESCRIPTION)
    parser.add_argument("--all-layers", action="store_true", help="show every layer, where equal ones share a line")
    add_flags(parser, ExecutorConfig)
    parsed = parser.parse_args(arguments)
    check_file_keys(parsed, ExecutorConfig)
    description = describe(read_config(ExecutorConfig, parsed))
    for line in description_lines(description, all_layers=parsed.all_layers):
        print(line)
    if description.missing:
        more = f" and {len(description.missing) - 1} more" if len(description.missing) > 1 else ""
        raise CheckpointError(f"the checkpoint has no tensor for {description.missing[0]}{more}")
    return 0


def describe(config: ExecutorConfig) -> Description:
    """The description of a config's model. Raises ForebayError for what would keep it from loading by name."""
    import torch

    from forebay.hub import resolve_model
    from forebay.parts import find_parts, with_parts
    from gpu_executor.model_info import read_model_config
    from gpu_executor.models import registry
    from gpu_executor.models.config_reader import ConfigReader
    from gpu_executor.models.loader import resolve_dtype, weight_table
    from gpu_executor.models.names import find, is_of_head, required

    task = None if config.task == "auto" else config.task
    dummy = config.load_format == "dummy"
    folder = resolve_model(config.model, revision=config.revision, download_dir=config.download_dir, weights=not dummy)
    model_config = read_model_config(folder, config.hf_overrides)
    parts = find_parts(model_config, download_dir=config.download_dir, weights=not dummy)
    model_config = with_parts(model_config, parts)
    dtype = resolve_dtype(config.dtype, model_config, torch.device("cpu"), folder=None if dummy else folder)
    if dummy:
        resolved = registry.resolve(ConfigReader(model_config, config.max_model_len), task)
        weights = []
        for name in required(resolved.spec, resolved.extras):
            found = find(name, resolved.spec)
            assert found is not None, name
            weights.append(DescribedWeight(name, found[1], found[0].value, "", ""))
    else:
        resolved, rows = weight_table(folder, model_config, config.max_model_len, task, parts)
        weights = []
        for row in rows:
            source = f"{row.stored.name} {row.stored.dtype}"
            twice = row.canonical == "head.weight" and resolved.spec.decoder.tied  # the embedding, stored again
            if not row.canonical or twice or (is_of_head(row.canonical) and not resolved.spec.has_head):
                weights.append(DescribedWeight("", row.stored.shape, "", source, row.rule))
                continue
            if row.role is None or row.shape is None:
                raise CheckpointError(
                    f"tensor {row.stored.name} would be {row.canonical}, which config.json's model does not have"
                )
            weights.append(DescribedWeight(row.canonical, row.shape, row.role.value, source, row.rule))
    known = {weight.name for weight in weights}
    return Description(
        resolved=resolved,
        dtype=dtype,
        weights=weights,
        missing=[name for name in required(resolved.spec, resolved.extras) if name not in known],
        memory=_state_memory(resolved, dtype),
        block_size=config.block_size,
    )


def _state_memory(resolved: Resolved, dtype: torch.dtype) -> StateMemory:
    """What the model's own layers say that they keep, asked of a model without memory."""
    import torch

    from gpu_executor.layer_groups import group_layers
    from gpu_executor.models.decoder import Decoder
    from gpu_executor.models.names import required
    from gpu_executor.models.weights import Weights

    nowhere, spec = torch.device("meta"), resolved.spec
    weights = Weights(spec, required(spec, resolved.extras), dtype, nowhere)
    short = dataclasses.replace(spec, max_model_len=1)  # position tables take memory wherever they end up
    layouts = Decoder(short, weights, dtype, nowhere).state_layouts
    groups = group_layers(
        layouts,
        dtype,
        spec.max_model_len,
        bidirectional=spec.bidirectional,
        cross=spec.encoder is not None,
        encoded=spec.encoded_layers,
    )
    return StateMemory(
        bytes_per_token=len(groups.windows) * groups.block_bytes(1, dtype),
        bytes_per_sequence=groups.bytes_per_sequence(dtype),
        windows=groups.windows,
        num_layers_per_block=len(groups.memories),
    )
