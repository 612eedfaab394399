"""Owns the way from a checkpoint's tensor names to canonical ones: anchored renames, and reshapes on the way.

Quirks of a checkpoint are folded into its weights here, so that kernels know one RoPE and one RMSNorm. A rule that
matches no tensor, and a tensor that no rule matches, are errors that name it: nothing is guessed and nothing is lost.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Literal

import torch

from forebay.errors import CheckpointError
from gpu_executor.models.spec import Attention

# From one tensor to the parts that go under the rule's targets, in their order. Raises CheckpointError saying what is
# wrong with the tensor's shape.
Reshape = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose whole name matches `pattern` become `targets` (with \\1, \\2, … of the match); none skips them.

    A rule that is not optional must match some tensor of every checkpoint.
    """

    pattern: str
    targets: tuple[str, ...]
    reshape: Reshape | None = None
    optional: bool = False
    inputs_first: bool = False  # its matrices are stored as (in, out)

    def __str__(self) -> str:
        how = f" ({self.reshape.__name__.replace('_', ' ')})" if self.reshape is not None else ""
        return f"{self.pattern} → {', '.join(self.targets) or 'skipped'}{how}"


def rename(pattern: str, target: str, *, optional: bool = False) -> Rule:
    """Another name, the tensor as it is."""
    return Rule(pattern, (target,), None, optional)


def skip(pattern: str) -> Rule:
    """Tensors that some checkpoints hold and nobody needs, such as buffers of an old version."""
    return Rule(pattern, (), None, optional=True)


def transpose(pattern: str, target: str, *, optional: bool = False) -> Rule:
    """A matrix stored as (in, out); the vectors of the same layer stay as they are."""

    def transposed(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (_outputs_first(tensor),)

    return Rule(pattern, (target,), transposed, optional, inputs_first=True)


def split_qkv(
    pattern: str,
    target: str,
    attention: Attention,
    *,
    layout: Literal["stacked", "grouped"] = "stacked",
    transposed: bool = False,
    neighbours: int = 0,
    optional: bool = False,
) -> Rule:
    """A fused projection of queries, keys and values, or its bias; `{}` in the target stands for q, k and v.

    stacked: all queries, all keys, all values: rows HK + GK + GK. grouped: for each kv head its H/G query heads, its key
    head, its value head; with one query head each, this is [q, k, v] per head. `neighbours`: as many dimensions of each
    head rotate in pairs (2i, 2i + 1), see permute_rope.
    """
    heads, groups, head_dim = attention.num_heads, attention.num_kv_heads, attention.head_dim
    per_group = heads // groups
    num_rows = (heads + 2 * groups) * head_dim

    def split(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = _outputs_first(tensor) if transposed else tensor
        if len(rows) != num_rows:
            raise CheckpointError(
                f"its {len(rows)} outputs are not those of {heads} query and {groups} kv heads of {head_dim}"
            )
        if layout == "stacked":
            q, k, v = rows.split((heads * head_dim, groups * head_dim, groups * head_dim))
        else:
            grouped = rows.unflatten(0, (groups, per_group + 2, head_dim))  # (G, H/G + 2, K, ...)
            q, k, v = (part.flatten(0, 2) for part in grouped.split((per_group, 1, 1), 1))
        if neighbours:
            q, k = (pairs_to_halves(part, head_dim, neighbours) for part in (q, k))
        return q, k, v

    split.__name__ = f"split_{layout}"
    return Rule(pattern, tuple(target.format(part) for part in "qkv"), split, optional, transposed)


def split_kv(pattern: str, target: str, attention: Attention, *, optional: bool = False) -> Rule:
    """A fused projection of keys and values, or its bias: each kv head's key, then its value; `{}` stands for k and v."""
    groups, head_dim = attention.num_kv_heads, attention.head_dim

    def split_keys_values(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(tensor) != 2 * groups * head_dim:
            raise CheckpointError(
                f"its {len(tensor)} outputs are not the keys and values of {groups} kv heads of {head_dim}"
            )
        heads = tensor.unflatten(0, (groups, 2, head_dim))  # (G, 2, K, ...)
        return heads[:, 0].flatten(0, 1), heads[:, 1].flatten(0, 1)

    return Rule(pattern, tuple(target.format(part) for part in "kv"), split_keys_values, optional)


def split_gate_up(
    pattern: str, target: str, *, interleaved: bool = False, transposed: bool = False, optional: bool = False
) -> Rule:
    """A fused projection of gate and up, or its bias: two halves, or by turns; `{}` in the target stands for each."""

    def split_halves(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = _outputs_first(tensor) if transposed else tensor
        if len(rows) % 2:
            raise CheckpointError(f"its {len(rows)} outputs are not two halves")
        return (rows[0::2], rows[1::2]) if interleaved else rows.chunk(2)

    return Rule(pattern, tuple(target.format(part) for part in ("gate", "up")), split_halves, optional, transposed)


def fold_unit_offset(pattern: str, target: str, *, optional: bool = False) -> Rule:
    """A norm that multiplies by 1 + weight; the sum is made in float32 and rounded once, when it is stored."""

    def plus_one(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (tensor.float() + 1,)

    return Rule(pattern, (target,), plus_one, optional)


def permute_rope(
    pattern: str,
    target: str,
    *,
    head_dim: int,
    rope_dim: int,
    start: int = 0,
    optional: bool = False,
) -> Rule:
    """A projection (or its bias) of heads that rotate neighbours (2i, 2i + 1), for (i, i + rope_dim / 2).

    The rotating dimensions of a head begin at `start`. The same permutation of queries and keys leaves their products as
    they are.
    """

    def permute_pairs(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (pairs_to_halves(tensor, head_dim, rope_dim, start),)

    return Rule(pattern, (target,), permute_pairs, optional)


def split_heads(pattern: str, target: str, num_heads: int, *, neighbours: int = 0, optional: bool = False) -> Rule:
    """A norm that has a row (K) for each head; `{}` in the target stands for the head's number, `neighbours` as in split_qkv."""

    def split_rows(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(tensor) != num_heads:
            raise CheckpointError(f"its {len(tensor)} rows are not those of {num_heads} heads")
        return tuple(pairs_to_halves(row, len(row), neighbours) if neighbours else row for row in tensor)

    return Rule(pattern, tuple(target.format(head) for head in range(num_heads)), split_rows, optional)


def pairs_to_halves(tensor: torch.Tensor, head_dim: int, rope_dim: int, start: int = 0) -> torch.Tensor:
    """(n head_dim, ...) -> the same with the pairs of each head's rotating dimensions (2i, 2i + 1) at (i, i + rope_dim / 2)."""
    end = start + rope_dim
    order = torch.cat(
        (
            torch.arange(start),
            torch.arange(start, end, 2),
            torch.arange(start + 1, end, 2),
            torch.arange(end, head_dim),
        )
    )
    if len(tensor) % head_dim:
        raise CheckpointError(f"its {len(tensor)} outputs are not those of heads of {head_dim}")
    return tensor.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)


def split_experts(pattern: str, targets: tuple[str, ...], num_experts: int, part: Reshape) -> Rule:
    """One tensor (E, out, in) or (E out, in) for all experts, `part` making the targets of one from its slice (out, in).

    `{}` in the targets stands for the expert's number.
    """

    def per_expert(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(tensor) % num_experts or (tensor.dim() == 3 and len(tensor) != num_experts):
            raise CheckpointError(f"its {len(tensor)} rows are not those of {num_experts} experts")
        slices = tensor if tensor.dim() == 3 else tensor.unflatten(0, (num_experts, -1))
        return tuple(tensor for expert in slices for tensor in part(expert))

    names = tuple(target.format(expert) for expert in range(num_experts) for target in targets)
    return Rule(pattern, names, per_expert)


def change(
    pattern: str, target: str, function: Callable[[torch.Tensor], torch.Tensor], *, optional: bool = False
) -> Rule:
    """Any other change of a tensor on its way, by a function whose name says what it does."""

    def changed(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (function(tensor),)

    changed.__name__ = function.__name__
    return Rule(pattern, (target,), changed, optional)


def _outputs_first(tensor: torch.Tensor) -> torch.Tensor:
    """(in, out) -> (out, in); a bias (out) as it is."""
    return tensor.t() if tensor.dim() == 2 else tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Match:
    """A checkpoint's tensor, the rule that takes it, and the canonical names of its parts."""

    source: str
    rule: Rule
    targets: tuple[str, ...]


def match_names(names: Iterable[str], rules: Iterable[Rule]) -> list[Match]:
    """Each name with the first rule that takes it. Raises CheckpointError for what is left over on either side."""
    compiled = [(re.compile(rule.pattern), rule) for rule in rules]
    used: set[int] = set()
    matches, unknown = [], []
    for name in names:
        for index, (pattern, rule) in enumerate(compiled):
            found = pattern.fullmatch(name)
            if found:
                used.add(index)
                matches.append(Match(name, rule, tuple(found.expand(target) for target in rule.targets)))
                break
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise CheckpointError(
            f"the checkpoint has tensors that this architecture does not: {', '.join(unknown[:3])}{more}"
        )
    idle = [rule for index, (_, rule) in enumerate(compiled) if index not in used and not rule.optional]
    if idle:
        raise CheckpointError(f"the checkpoint has no tensor like {idle[0].pattern}")
    return matches


def rows_of_parts(match: Match, num_rows: int) -> dict[str, torch.Tensor] | None:
    """For each target the rows of the matrix (num_rows, in) that it is, (n) int64; None unless all that happens is to choose rows.

    Found by sending numbers of rows through the reshape: what changes values, or mixes columns, does not leave them whole.
    """
    numbers = torch.arange(num_rows, dtype=torch.float64)
    if match.rule.reshape is None:
        return {match.targets[0]: numbers.long()}
    matrix = torch.stack((numbers, -1 - numbers), 1)
    try:
        parts = match.rule.reshape(matrix.t() if match.rule.inputs_first else matrix)
    except (CheckpointError, RuntimeError, IndexError):
        return None  # wrong for the real matrix too, or meant for one with its own columns: it is put through itself
    rows = {}
    for target, part in zip(match.targets, parts, strict=True):
        if part.dim() != 2 or part.shape[1] != 2 or not torch.equal(part[:, 1], -1 - part[:, 0]):
            return None
        if (part[:, 0] < 0).any() or (part[:, 0] >= num_rows).any() or part.frac().any():
            return None
        rows[target] = part[:, 0].long()
    return rows
