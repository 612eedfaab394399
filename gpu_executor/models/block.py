"""Owns the block: a mixer and a feed-forward layer around the residual stream, in the three forms that models have.

A block takes x and residual and gives the same two. The stream is x + residual, where x is what the last branch gave and
is still to be added, so that each add is fused with the norm that follows it; residual None: the stream is x.
Both are overwritten.

    sequential                          parallel                        post_norm
    s ─┬─▶ norm1 ─▶ mixer ─▶ +          s ─┬─▶ norm1 ─┬─▶ mixer ─▶ +    s ─┬─▶ mixer ─▶ + ─▶ norm1
       └─────────────────────┤             │    (norm2)─▶ mlp ───▶ +       └────────────┘
    s ─┬─▶ norm2 ─▶ mlp ───▶ +             └───────────────────────┤    s ─┬─▶ mlp ───▶ + ─▶ norm2
       └─────────────────────┤                                             └────────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpu_executor.batch import Batch
from gpu_executor.layers.norm import NormLayer
from gpu_executor.models.spec import Residual

Stream = tuple[torch.Tensor, torch.Tensor | None]
Mixer = Callable[[torch.Tensor, Batch, Any], torch.Tensor]
FeedForward = Callable[[torch.Tensor], torch.Tensor]


class SequentialBlock:
    """x += mixer(norm1(x)); x += mlp(norm2(x))."""

    def __init__(self, mixer: Mixer, mlp: FeedForward, norm1: NormLayer, norm2: NormLayer | None) -> None:
        assert norm2 is not None
        self.mixer, self.mlp = mixer, mlp
        self._norm1, self._add_norm1, self._add_norm2 = norm1, norm1.add, norm2.add

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x, residual (T, D) -> the same two, after this layer."""
        if residual is None:
            x, residual = self._norm1(x), x
        else:
            x, residual = self._add_norm1(x, residual)
        x, residual = self._add_norm2(self.mixer(x, batch, state), residual)
        return self.mlp(x), residual


class ParallelBlock:
    """x += mixer(norm1(x)) + mlp(norm2(x)); without a norm2, the first serves both branches."""

    def __init__(self, mixer: Mixer, mlp: FeedForward, norm1: NormLayer, norm2: NormLayer | None) -> None:
        self.mixer, self.mlp, self._norm1, self._add_norm1, self._norm2 = mixer, mlp, norm1, norm1.add, norm2

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x, residual (T, D) -> the same two, after this layer."""
        if residual is None:
            x, residual = self._norm1(x), x
        else:
            x, residual = self._add_norm1(x, residual)
        mixed = self.mixer(x, batch, state)
        return mixed.add_(self.mlp(x if self._norm2 is None else self._norm2(residual))), residual


class PostNormBlock:
    """x = norm1(x + mixer(x)); x = norm2(x + mlp(x))."""

    def __init__(self, mixer: Mixer, mlp: FeedForward, norm1: NormLayer, norm2: NormLayer | None) -> None:
        assert norm2 is not None
        self.mixer, self.mlp, self._add_norm1, self._add_norm2 = mixer, mlp, norm1.add, norm2.add

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None, batch: Batch, state: Any) -> Stream:
        """x (T, D), nothing beside it -> the same, after this layer."""
        x, _ = self._add_norm1(self.mixer(x, batch, state), x)
        x, _ = self._add_norm2(self.mlp(x), x)
        return x, None


Block = SequentialBlock | ParallelBlock | PostNormBlock

BLOCKS: dict[Residual, type[Block]] = {
    "sequential": SequentialBlock,
    "parallel": ParallelBlock,
    "post_norm": PostNormBlock,
}
