"""Owns the way from a checkpoint's tensor names to canonical ones: anchored renames, and reshapes on the way.

Quirks of a checkpoint are folded into its weights here, so that kernels know one RoPE and one RMSNorm. A rule that
matches no tensor, and a tensor that no rule matches, are errors that name it: nothing is guessed and nothing is lost.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

import torch

from forebay.errors import CheckpointError

# From one tensor to the parts that go under the rule's targets, in their order.
Reshape = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """Tensors whose whole name matches `pattern` become `targets` (with \\1, \\2, … of the match); none skips them."""

    pattern: str
    targets: tuple[str, ...]
    reshape: Reshape | None = None
    optional: bool = False

    def __str__(self) -> str:
        how = f" by {self.reshape.__name__}" if self.reshape is not None else ""
        return f"{self.pattern} → {', '.join(self.targets) or 'skipped'}{how}"


def rename(pattern: str, target: str, *, optional: bool = False) -> Rule:
    """Another name, the tensor as it is."""
    return Rule(pattern, (target,), optional=optional)


def skip(pattern: str) -> Rule:
    """Tensors that some checkpoints hold and nobody needs, such as buffers of an old version."""
    return Rule(pattern, (), optional=True)


def transpose(pattern: str, target: str) -> Rule:
    """A matrix stored as (in, out); a vector of the same layer stays as it is."""
    return Rule(pattern, (target,), _transposed)


def split(pattern: str, targets: tuple[str, ...], sizes: tuple[int, ...], *, transposed: bool = False) -> Rule:
    """A fused projection whose outputs lie one after the other: q, k and v, or gate and up; also its bias."""

    def split_outputs(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = tensor.t() if transposed and tensor.dim() == 2 else tensor
        if len(rows) != sum(sizes):
            raise CheckpointError(f"its {len(rows)} outputs are not {' + '.join(map(str, sizes))}")
        return rows.split(sizes)

    return Rule(pattern, targets, split_outputs)


def _transposed(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (tensor.t() if tensor.dim() == 2 else tensor,)


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
