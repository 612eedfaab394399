"""Owns a model's weights: one tensor per fused group, and for each canonical name the slot that it fills."""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Iterable

import torch

from gpu_executor.layers.linear import Linear
from gpu_executor.layers.norm import NormLayer, make_norm
from gpu_executor.models.names import ENCODER, FLOAT32_NAMES, find
from gpu_executor.models.spec import Attention, ModelSpec, Moe, Norm
from kernels.quantized_linear import PackedWeight, concatenate, dequantize, fits_kernel

# Canonical tensors of one layer that lie one after the other in one tensor, so that one product serves them all.
_FUSED = {
    "mixer.qkv": ("mixer.q", "mixer.k", "mixer.v"),
    "cross.kv": ("cross.k", "cross.v"),
    "mixer.qkv_a": ("mixer.q_a", "mixer.kv_a"),
    "mlp.gate_up": ("mlp.gate", "mlp.up"),
    "mlp.shared.gate_up": ("mlp.shared.gate", "mlp.shared.up"),
}

_HUGE_PAGE_BYTES = 1 << 21


class Weights:
    """Allocated, not yet filled weights of the canonical tensors that a checkpoint has.

    `slots` maps each canonical name to a view of the shape that names.find tells; `get` gives what layers use. Where
    some parts of a group have a bias and others none, those have a bias of zeros.

    `packed` are names of matrices that may stay quantized. Those that do (`packed` of the object: a group does as a whole)
    have no slot; they are given with `put`, and `linear` takes them.
    """

    def __init__(
        self,
        spec: ModelSpec,
        names: Iterable[str],
        dtype: torch.dtype,
        device: torch.device,
        packed: Collection[str] = (),
    ) -> None:
        self._spec, self.dtype, self.device = spec, dtype, device
        self.packed = set(packed)
        self._given: dict[str, PackedWeight] = {}
        self.slots: dict[str, torch.Tensor] = {}
        self._fused: dict[str, torch.Tensor] = {}
        names = dict.fromkeys(names)
        layers = [(f"layers.{index}", layer) for index, layer in enumerate(spec.decoder.layers)]
        if spec.encoder is not None:
            layers += [(f"{ENCODER}layers.{index}", layer) for index, layer in enumerate(spec.encoder.layers)]
        for prefix, layer in layers:
            if isinstance(layer.mlp, Moe):
                self._allocate_experts(f"{prefix}.mlp.experts", layer.mlp.num_experts)
            if isinstance(layer.mixer, Attention) and layer.mixer.qk_norm == "heads":
                for norm, num_heads in (("q_norm", layer.mixer.num_heads), ("k_norm", layer.mixer.num_kv_heads)):
                    for kind in ("weight", "bias"):
                        if f"{prefix}.mixer.{norm}.0.{kind}" in names:
                            self._allocate_rows(f"{prefix}.mixer.{norm}", kind, num_heads)
            for group, parts in _FUSED.items():
                matrices = [f"{prefix}.{part}.weight" for part in parts]
                if all(name in names for name in matrices):
                    if not self.packed.issuperset(matrices):
                        self.packed.difference_update(matrices)
                    for kind in ("weight", "bias"):
                        members = [f"{prefix}.{part}.{kind}" for part in parts]
                        if any(name in names for name in members) and self.packed.isdisjoint(members):
                            self._fused[f"{prefix}.{group}.{kind}"] = self._allocate(members, names)
        for name in names:
            if name not in self.slots and name not in self.packed:
                exact = name.removeprefix("layers.").partition(".")[2] in FLOAT32_NAMES
                self.slots[name] = self._empty(self._shape(name), torch.float32 if exact else dtype)

    def _allocate(self, members: list[str], names: dict[str, None]) -> torch.Tensor:
        """One tensor for a group's members, each with its slot in it; zeros for those that are not in `names`."""
        shapes = [self._shape(name) for name in members]
        num_rows = [shape[0] for shape in shapes]
        whole = self._empty((sum(num_rows), *shapes[0][1:]))
        for name, view in zip(members, whole.split(num_rows), strict=True):
            if name in names:
                self.slots[name] = view
            else:
                view.zero_()
        return whole

    def _allocate_experts(self, name: str, num_experts: int) -> None:
        """All experts' matrices in two tensors, (E, 2F, D) and (E, D, F), which one grouped product reads."""
        size, hidden_size = self._shape(f"{name}.0.gate.weight")
        gate_up = self._fused[f"{name}.gate_up.weight"] = self._empty((num_experts, 2 * size, hidden_size))
        down = self._fused[f"{name}.down.weight"] = self._empty((num_experts, hidden_size, size))
        for expert in range(num_experts):
            parts = (*gate_up[expert].chunk(2), down[expert])
            for part, view in zip(("gate", "up", "down"), parts, strict=True):
                self.slots[f"{name}.{expert}.{part}.weight"] = view

    def _allocate_rows(self, name: str, kind: str, num_heads: int) -> None:
        """One tensor (H, K) for the weights, or the biases, of a norm whose heads each have one."""
        whole = self._fused[f"{name}.{kind}"] = self._empty((num_heads, *self._shape(f"{name}.0.{kind}")))
        self.slots |= {f"{name}.{head}.{kind}": row for head, row in enumerate(whole)}

    def _shape(self, name: str) -> tuple[int, ...]:
        found = find(name, self._spec)
        assert found is not None, name
        return found[1]

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        dtype = dtype or self.dtype
        num_bytes = math.prod(shape) * dtype.itemsize
        if self.device.type == "cpu" and num_bytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            # Weights are touched for the first time while loading and read whole at every step: the faults of small pages
            # make the one slower, and the misses of the page tables the other.
            memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
            return torch.frombuffer(memory, dtype=dtype).view(shape)
        return torch.empty(shape, dtype=dtype, device=self.device)

    def put(self, name: str, weight: PackedWeight) -> None:
        """Gives the matrix of a canonical name that is in `packed`."""
        assert name in self.packed and (weight.dout, weight.din) == self._shape(name), name
        self._given[name] = weight

    def get(self, name: str) -> torch.Tensor | None:
        """The tensor of a fused group, such as `layers.0.mixer.qkv.weight`, or of a canonical name; None if there is none."""
        return self._fused.get(name, self.slots.get(name))

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """All tensors whose canonical names begin with the prefix, by the rest of their names."""
        return {name.removeprefix(prefix): slot for name, slot in self.slots.items() if name.startswith(prefix)}

    def linear(self, name: str) -> Linear | None:
        """The linear layer of this name, with its bias if there is one; None if there is no such matrix.

        Asked for once: the parts of a fused group are given up for the whole.
        """
        weight = self._quantized(name) if self._given else None
        weight = self.get(f"{name}.weight") if weight is None else weight
        return None if weight is None else Linear(weight, self.get(f"{name}.bias"))

    def _quantized(self, name: str) -> PackedWeight | torch.Tensor | None:
        """A matrix that stays quantized, unless its groups are none for the kernel or its parts differ in form."""
        members = [f"{name}.weight"]
        for group, parts in _FUSED.items():
            if name.endswith(f".{group}"):
                members = [f"{name.removesuffix(group)}{part}.weight" for part in parts]
        if not all(member in self._given for member in members):
            return None
        given = [self._given.pop(member) for member in members]
        if all(map(fits_kernel, given)):
            try:
                return concatenate(given)
            except ValueError:  # as where one part has eight bits and another four
                pass
        return torch.cat([dequantize(weight).to(self.dtype) for weight in given])

    def norm(self, name: str, spec: Norm) -> NormLayer | None:
        """The norm layer of this name; None if there is none. One that is not affine needs no tensors."""
        weight = self.get(f"{name}.weight")
        if weight is None and spec.affine:
            return None
        return make_norm(spec, weight, self.get(f"{name}.bias"))
