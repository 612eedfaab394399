"""Owns how a tower is put together: its module built without drawing weights, and the checkpoint's put in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gpu_executor.models.towers.tower import Tower, TowerSpec

_DRAWS = frozenset({torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_})


class _NoDraws(TorchFunctionMode):
    """Leaves tensors that are to be drawn at random as they are: that takes a large tower many seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function in _DRAWS else function(*args, **(kwargs or {}))


def tensor_shapes(spec: TowerSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that the tower needs, by their names in its module."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in spec.build().state_dict().items()}


def assemble(spec: TowerSpec, weights: Mapping[str, torch.Tensor], device: torch.device) -> Tower:
    """The tower with `weights`, which are not copied, by their names in its module."""
    with _NoDraws():
        module = spec.build()  # on the CPU: buffers that are no weights get their values here
    module.load_state_dict(dict(weights), assign=True)
    return module.to(device).eval().requires_grad_(False)
