"""Owns a model's weights: one tensor per fused group, and for each canonical name the slot that it fills."""

from __future__ import annotations

import torch

from gpu_executor.models.names import find
from gpu_executor.models.spec import ModelSpec

# Canonical tensors of one layer that lie one after the other in one tensor, so that one product serves them all.
_FUSED = (("qkv", ("mixer.q", "mixer.k", "mixer.v")), ("gate_up", ("mlp.gate", "mlp.up")))


class Weights:
    """Allocated, not yet filled weights of the canonical tensors that a checkpoint has.

    `slots` maps each canonical name to a view of the shape that names.find tells; `get` gives what layers use. Where some
    parts of a group have a bias and others none, those have a bias of zeros.
    """

    def __init__(self, spec: ModelSpec, names: set[str], dtype: torch.dtype, device: torch.device) -> None:
        self.slots: dict[str, torch.Tensor] = {}
        self._fused: dict[str, torch.Tensor] = {}
        grouped: set[str] = set()
        for index in range(len(spec.decoder.layers)):
            for group, parts in _FUSED:
                for kind in ("weight", "bias"):
                    members = [f"layers.{index}.{part}.{kind}" for part in parts]
                    present = [name for name in members if name in names]
                    if present and f"layers.{index}.{parts[0]}.weight" in names:
                        self._allocate(f"layers.{index}.{group}.{kind}", members, names, spec, dtype, device)
                        grouped.update(members)
        for name in sorted(names - grouped):
            self.slots[name] = torch.empty(_shape(name, spec), dtype=dtype, device=device)

    def _allocate(
        self, fused: str, members: list[str], names: set[str], spec: ModelSpec, dtype: torch.dtype, device: torch.device
    ) -> None:
        shapes = [_shape(name, spec) for name in members]
        rows = [shape[0] for shape in shapes]
        whole = torch.empty((sum(rows), *shapes[0][1:]), dtype=dtype, device=device)
        for name, view in zip(members, whole.split(rows), strict=True):
            if name in names:
                self.slots[name] = view
            else:
                view.zero_()
        self._fused[fused] = whole

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor of a canonical name or of a fused group, such as `layers.0.qkv.weight`; None if there is none."""
        return self._fused.get(name, self.slots.get(name))


def _shape(name: str, spec: ModelSpec) -> tuple[int, ...]:
    found = find(name, spec)
    assert found is not None, name
    return found[1]
