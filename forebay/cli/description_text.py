"""Owns how `forebay describe` writes a description: the spec, a table of weights, the rules, memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forebay.cli.describe import DescribedWeight, Description

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")
_SHOWN_ITEMS = 4  # of a long tuple


def description_lines(description: Description, *, all_layers: bool) -> Iterator[str]:
    """The lines; unless `all_layers`, weights that differ in nothing but layer and expert share one."""
    spec, dtype = description.resolved.spec, str(description.dtype).removeprefix("torch.")
    yield from _spec_lines(spec)
    yield ""
    yield from _weight_lines(description, dtype, all_layers)
    yield ""
    shapes = [weight.shape for weight in description.weights if weight.name]
    num_parameters = sum(map(math.prod, shapes))
    yield f"weights   {num_parameters:,} parameters, {_size(num_parameters * description.dtype.itemsize)} in {dtype}"
    yield from _memory_lines(description)


def _memory_lines(description: Description) -> Iterator[str]:
    memory = description.memory
    if memory.bytes_per_token:
        yield f"KV cache  {_cache_size(description)}"
    if memory.bytes_per_sequence:
        yield f"state     {_size(memory.bytes_per_sequence)} per sequence, whatever its length"


def _cache_size(description: Description) -> str:
    memory, block_size, spec = description.memory, description.block_size, description.resolved.spec
    windows = [window for window in memory.windows if window is not None]
    num_groups, longest = len(memory.windows), spec.max_model_len
    lengths = [min(longest, window or longest) + spec.max_encoder_len for window in memory.windows]
    num_blocks = sum(-(-length // block_size) for length in lengths)
    block_bytes = memory.bytes_per_token * block_size // num_groups
    token, block = (
        f"{_size(memory.bytes_per_token)} per token",
        f"{_size(block_bytes)} per block of {block_size} tokens",
    )
    if windows and num_groups > 1:
        kept = memory.bytes_per_token * (num_groups - len(windows)) // num_groups
        token += f", {_size(kept)} once the window of {max(windows):,} has passed"
    if num_groups > 1:
        block += f" in {memory.num_layers_per_block} layer{'s' if memory.num_layers_per_block > 1 else ''}"
    what = "window" if len(windows) == num_groups else "sequence"
    media = ""
    if spec.reads_media:
        media = f", {_size(block_bytes * -(-spec.most_encoded // block_size))} for an item of media"
    return f"{token}, {block}, {_size(block_bytes * num_blocks)} for a {what} of {max(lengths):,}{media}"


def _spec_lines(value: Any, indent: str = "") -> Iterator[str]:
    """A line per field that is not as usual; what has layers goes on one level below, with equal layers in one line."""
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if field.name == "layers":
            start = 0
            for layer, run in itertools.groupby(item):
                end = start + len(list(run))
                yield f"{indent}layers {_span(start, end - 1)}"
                yield from _spec_lines(layer, indent + "  ")
                start = end
        elif hasattr(item, "layers"):
            yield f"{indent}{field.name}"
            yield from _spec_lines(item, indent + "  ")
        elif item != field.default:
            yield f"{indent + field.name:15} {_spelled(item)}"


def _spelled(value: Any) -> str:
    """A dataclass without what is None; a long tuple shortened."""
    if dataclasses.is_dataclass(value):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        inner = ", ".join(f"{name}={_spelled(item)}" for name, item in items if item is not None)
        return f"{type(value).__name__}({inner})"
    if isinstance(value, tuple) and len(value) > _SHOWN_ITEMS:
        return f"({', '.join(map(_spelled, value[:_SHOWN_ITEMS]))}, … {len(value)} in all)"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    return value if isinstance(value, str) else repr(value)


def _weight_lines(description: Description, dtype: str, all_layers: bool) -> Iterator[str]:
    """The table of weights, then the rules by their numbers."""
    rules = list(dict.fromkeys(weight.rule for weight in description.weights if weight.rule))
    table = [("weight", "shape", "dtype", "role", "bytes", "rule", "tensor")]
    for group in _groups(description.weights, all_layers):
        weight = group[0]
        num_bytes = math.prod(weight.shape) * description.dtype.itemsize * len(group)
        table.append(
            (
                _joined([item.name for item in group]) or "(skipped)",
                "×".join(map(str, weight.shape)),
                dtype if weight.name else "",
                weight.role,
                _size(num_bytes) if weight.name else "",
                str(rules.index(weight.rule) + 1) if weight.rule else "",
                _joined([item.source for item in group]) or "random",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    if rules:
        yield ""
        yield from (f"rule {number:2}  {rule}" for number, rule in enumerate(rules, 1))


def _groups(weights: Sequence[DescribedWeight], all_layers: bool) -> list[list[DescribedWeight]]:
    """Weights that differ in nothing but layer and expert together, by the place of the first one."""
    groups: dict[Any, list[DescribedWeight]] = {}
    for index, weight in enumerate(weights):
        names = (_NUMBER.sub("*", weight.name), _NUMBER.sub("*", weight.source))
        key = index if all_layers else (*names, weight.shape, weight.role, weight.rule)
        groups.setdefault(key, []).append(weight)
    return list(groups.values())


def _joined(names: list[str]) -> str:
    """`layers.0-3.norm` for the same name in several layers; `layers.0,2.norm` where they are not in a row."""
    columns = zip(*(map(int, _NUMBER.findall(name)) for name in names), strict=True)
    spans = iter([_spans(sorted(set(numbers))) for numbers in columns])
    return _NUMBER.sub(lambda _: next(spans), names[0])


def _spans(numbers: list[int]) -> str:
    runs = itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    found = [[number for _, number in run] for _, run in runs]
    return ",".join(_span(run[0], run[-1]) for run in found)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} TiB"
