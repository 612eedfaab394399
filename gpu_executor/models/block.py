"""Owns the block: a mixer and a feed-forward layer around the residual stream, in the forms that models have.

A block takes x and residual and gives the same two. The stream is x + residual, where x is what the last branch gave and
is still to be added, so that each add is fused with the norm that follows it; residual None: the stream is x.
Both are overwritten.

    sequential                          parallel                        post_norm
    s ─┬─▶ norm1 ─▶ mixer ─▶ +          s ─┬─▶ norm1 ─┬─▶ mixer ─▶ +    s ─┬─▶ mixer ─▶ + ─▶ norm1
       └─────────────────────┤             │    (norm2)─▶ mlp ───▶ +       └────────────┘
    s ─┬─▶ norm2 ─▶ mlp ───▶ +             └───────────────────────┤    s ─┬─▶ mlp ───▶ + ─▶ norm2
       └─────────────────────┤                                             └────────────┘
    branch_norm: norms stand behind the branches, s + norm1(mixer(s)). normed: as sequential, but what is added to is the
    normed stream, norm1(s) + mixer(norm1(s)). experts_beside: sequential with a shared MLP; the routed experts read the
    layer's own input. gated_cross: sequential with cross attention in the mixer's place, both branches scaled. In
    sequential blocks a branch may be absent, or end with a norm of its own (post_norm1, post_norm2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from gpu_executor.batch import Batch
from gpu_executor.layers.moe import MoeMlp
from gpu_executor.layers.norm import NormLayer
from gpu_executor.mixers.cross_attention import CrossAttention
from gpu_executor.models.spec import Residual

Stream = tuple[torch.Tensor, torch.Tensor | None]
Mixer = Callable[[torch.Tensor, Batch, Any], torch.Tensor]
FeedForward = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """What a block is made of. A part that the form has no use for is None, or may be."""

    mixer: Mixer | None
    mlp: FeedForward | None
    norm1: NormLayer | None
    norm2: NormLayer | None
    post_norm1: NormLayer | None = None
    post_norm2: NormLayer | None = None
    shared_norm: NormLayer | None = None
    residual_scale: float = 1.0
    cross: CrossAttention | None = None
    cross_norm: NormLayer | None = None
    cross_gate: torch.Tensor | None = None
    mlp_gate: torch.Tensor | None = None


class SequentialBlock:
    """x += mixer(norm1(x)); x += mlp(norm2(x))."""

    def __init__(self, parts: Parts) -> None:
        self.mixer, self.mlp = parts.mixer, parts.mlp
        self._norm1, self._norm2 = parts.norm1, parts.norm2
        self._post_norm1, self._post_norm2 = parts.post_norm1, parts.post_norm2
        self._scale = parts.residual_scale
        self.cross, self._cross_norm = parts.cross, parts.cross_norm

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x, residual (T, D) -> the same two, after this layer."""
        if self.mixer is not None:
            x, residual = _enter(self._norm1, x, residual)
            x = self._leave(self._post_norm1, self.mixer(x, batch, state))
        if self.cross is not None:
            x, residual = _enter(self._cross_norm, x, residual)
            x = self._leave(None, self.cross(x, batch, state))
        if self.mlp is not None:
            x, residual = _enter(self._norm2, x, residual)
            x = self._leave(self._post_norm2, self.mlp(x))
        return x, residual

    def _leave(self, norm: NormLayer | None, x: torch.Tensor) -> torch.Tensor:
        if norm is not None:
            x = norm(x)
        return x if self._scale == 1.0 else x.mul_(self._scale)


class BranchNormBlock:
    """x += norm1(mixer(x)); x += norm2(mlp(x))."""

    def __init__(self, parts: Parts) -> None:
        self.mixer, self.mlp, self._norm1, self._norm2 = parts.mixer, parts.mlp, parts.norm1, parts.norm2

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x, residual (T, D) -> the same two, after this layer."""
        stream = _sum(x, residual)
        stream.add_(self._norm1(self.mixer(stream, batch, state)))
        return self._norm2(self.mlp(stream)), stream


class ParallelBlock:
    """x += mixer(norm1(x)) + mlp(norm2(x)); without a norm2, the first serves both branches."""

    def __init__(self, parts: Parts) -> None:
        self.mixer, self.mlp, self._norm1, self._norm2 = parts.mixer, parts.mlp, parts.norm1, parts.norm2

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x, residual (T, D) -> the same two, after this layer."""
        x, residual = _enter(self._norm1, x, residual)
        mixed = self.mixer(x, batch, state)
        return mixed.add_(self.mlp(x if self._norm2 is None else self._norm2(residual))), residual


class PostNormBlock:
    """x = norm1(x + mixer(x)); x = norm2(x + mlp(x))."""

    def __init__(self, parts: Parts) -> None:
        self.mixer, self.mlp, self._norm1, self._norm2 = parts.mixer, parts.mlp, parts.norm1, parts.norm2
        self.cross, self._cross_norm = parts.cross, parts.cross_norm

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x (T, D), nothing beside it -> the same, after this layer."""
        x, _ = self._norm1.add(self.mixer(x, batch, state), x)
        if self.cross is not None:
            x, _ = self._cross_norm.add(self.cross(x, batch, state), x)
        x, _ = self._norm2.add(self.mlp(x), x)
        return x, None


class NormedBlock:
    """x = norm1(x); x += mixer(x); x = norm2(x); x += mlp(x)."""

    def __init__(self, parts: Parts) -> None:
        self.mixer, self.mlp, self._norm1, self._norm2 = parts.mixer, parts.mlp, parts.norm1, parts.norm2

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x, residual (T, D) -> the same two, after this layer."""
        x, _ = _enter(self._norm1, x, residual)
        x, _ = self._norm2.add(self.mixer(x, batch, state), x)
        return self.mlp(x), x


class ExpertsBesideBlock:
    """y = x + mixer(norm1(x)); x = y + shared(shared_norm(y)) + experts(norm2(x)) (Snowflake Arctic, 2024)."""

    def __init__(self, parts: Parts) -> None:
        assert isinstance(parts.mlp, MoeMlp)
        self.mixer, self.mlp = parts.mixer, parts.mlp
        self._norm1, self._norm2, self._shared_norm = parts.norm1, parts.norm2, parts.shared_norm

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x, residual (T, D) -> the same two, after this layer."""
        x, residual = _enter(self._norm1, x, residual)
        routed = self.mlp.experts(self._norm2(residual))  # before the residual is overwritten
        x, residual = self._shared_norm.add(self.mixer(x, batch, state), residual)
        return routed.add_(self.mlp.shared(x)), residual


class GatedCrossBlock:
    """x += gate * cross(cross_norm(x)); x += gate * mlp(norm2(x)) (Flamingo: Alayrac et al., 2022).

    Sequences that have nothing to read pass as they are. In Llama 3.2 (Dubey et al., 2024), as transformers has it, tokens
    that stand before all media read of all of it, and their MLP adds nothing.
    """

    mixer = None

    def __init__(self, parts: Parts) -> None:
        self.cross, self.mlp, self._norm1, self._norm2 = parts.cross, parts.mlp, parts.cross_norm, parts.norm2
        self._cross_gate, self._mlp_gate = parts.cross_gate, parts.mlp_gate

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x, residual (T, D) -> the same two, after this layer."""
        cross = batch.cross
        if cross is None:
            return x, residual
        stream = _sum(x, residual)
        part = stream if cross.rows is None else stream[cross.rows]  # (T', D)
        part.add_(self.cross(self._norm1(part), batch, state).mul_(self._cross_gate))
        added = self.mlp(self._norm2(part)).mul_(self._mlp_gate)
        part.add_(added if cross.passes_mlp is None else added.mul_(cross.passes_mlp))
        if cross.rows is not None:
            stream[cross.rows] = part
        return stream, None


def _enter(norm: NormLayer, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed stream, and the stream."""
    return (norm(x), x) if residual is None else norm.add(x, residual)


def _sum(x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    """The stream itself."""
    return x if residual is None else residual.add_(x)


Block = (
    SequentialBlock
    | BranchNormBlock
    | ParallelBlock
    | PostNormBlock
    | NormedBlock
    | ExpertsBesideBlock
    | GatedCrossBlock
)

BLOCKS: dict[Residual, Callable[[Parts], Block]] = {
    "sequential": SequentialBlock,
    "branch_norm": BranchNormBlock,
    "parallel": ParallelBlock,
    "post_norm": PostNormBlock,
    "normed": NormedBlock,
    "experts_beside": ExpertsBesideBlock,
    "gated_cross": GatedCrossBlock,
}
