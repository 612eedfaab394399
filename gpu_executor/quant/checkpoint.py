"""Owns the view of a quantized checkpoint in which every matrix is one tensor `P.weight`, whatever tensors make it.

So rules and shape checks of every architecture work as they do for a plain checkpoint. Scales of activations and of the KV
cache have no place in the view: activations and KV keep the model's number format, which loses nothing but speed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import torch

from forebay.errors import CheckpointError
from gpu_executor.models.checkpoint import FLOAT_DTYPES, Checkpoint, StoredTensor
from gpu_executor.quant.config import Scheme
from gpu_executor.quant.matrix import FORMATS, Format, QuantizedMatrix, Shape

_NOT_OF_WEIGHTS = re.compile(r".+\.(?:(?:input|output|activation|[qkv]|kv)_(?:scale|zero_point)|input_scale_ub)")


class QuantizedCheckpoint:
    """A Checkpoint's interface over a quantized one. Raises CheckpointError for matrices that lack some of their tensors."""

    def __init__(self, stored: Checkpoint, scheme: Scheme) -> None:
        self.scheme = scheme
        self.tensors: dict[str, StoredTensor] = {}
        self._stored = stored
        self._formats: dict[str, Format] = {}
        self._parts: dict[
            str, dict[str, str]
        ] = {}  # of each matrix: names in the checkpoint, by what follows the prefix
        self._find_matrices()
        shapes = self._read_shapes()
        of_matrices = {name: matrix for matrix, parts in self._parts.items() for name in parts.values()}
        for name, tensor in stored.tensors.items():
            matrix = of_matrices.get(name)
            if matrix is None:
                if not _NOT_OF_WEIGHTS.fullmatch(name):
                    self.tensors[name] = tensor
            elif matrix not in self.tensors:
                self.tensors[matrix] = self._logical(matrix, shapes)

    def _find_matrices(self) -> None:
        by_main = {format.main: format for format in FORMATS[self.scheme.method]}
        for name, tensor in self._stored.tensors.items():
            prefix, _, last = name.rpartition(".")
            format = by_main.get(last)
            if format is None or (last == "weight" and tensor.dtype in FLOAT_DTYPES):
                continue
            parts = {last: name}
            for part in (*format.needed, *format.optional):
                found = [each for each in part.split("|") if f"{prefix}.{each}" in self._stored.tensors]
                if not found and part in format.needed:
                    raise CheckpointError(
                        f"tensor {name} is quantized ({self.scheme.method}), but the checkpoint has no {prefix}."
                        + f" or {prefix}.".join(part.split("|"))
                    )
                parts |= {each: f"{prefix}.{each}" for each in found}
            matrix = f"{prefix}.weight"
            if matrix in self._parts or (last != "weight" and matrix in self._stored.tensors):
                raise CheckpointError(f"tensor {matrix} is in the checkpoint beside {name}, which stands for it")
            self._formats[matrix], self._parts[matrix] = format, parts

    def _read_shapes(self) -> dict[str, Shape]:
        """Shapes that are stored as tensors of two numbers, by their names."""
        names = [parts["weight_shape"] for parts in self._parts.values() if "weight_shape" in parts]
        return {name: tuple(tensor.tolist()) for name, tensor in self._stored.read(names)}

    def _logical(self, matrix: str, read: dict[str, Shape]) -> StoredTensor:
        parts, format = self._parts[matrix], self._formats[matrix]
        main = self._stored.tensors[parts[format.main]]
        try:
            shape = format.shape(
                {part: read.get(name) or self._stored.tensors[name].shape for part, name in parts.items()}
            )
        except (ValueError, IndexError) as error:
            raise CheckpointError(f"tensor {matrix} ({self.scheme.method}): {error}") from None
        kind = main.dtype
        if kind == "I32":
            kind = "int4" if math.prod(main.shape) * 4 < math.prod(shape) else "int8"
        return StoredTensor(matrix, main.path, shape, f"{kind} ({self.scheme.method})")

    def drop_padding(self, takes: Callable[[str], bool]) -> None:
        """Forgets biases of zeros where the model takes no bias: gptq's packers wrote one beside every matrix."""
        biases = (f"{matrix.removesuffix('weight')}bias" for matrix in self._parts)
        idle = [name for name in biases if name in self.tensors and not takes(name)]
        for name, tensor in self._stored.read(idle):
            if not tensor.any():
                del self.tensors[name]

    def has_rows_of_outputs(self, name: str, *, inputs_first: bool) -> bool:
        """Whether a tensor is a quantized matrix (out, in), though the layer keeps plain ones as (in, out)."""
        return name in self._parts and (self._formats[name].turned or not inputs_first)

    def read(self, names: list[str]) -> Iterator[tuple[str, torch.Tensor | QuantizedMatrix]]:
        """The named tensors, each as soon as all that makes it has been met in the files; nothing is unpacked yet."""
        owners = {part: name for name in names if name in self._parts for part in self._parts[name].values()}
        waiting: dict[str, dict[str, torch.Tensor]] = {}
        for stored_name, tensor in self._stored.read([*owners, *(name for name in names if name not in self._parts)]):
            name = owners.get(stored_name)
            if name is None:
                yield stored_name, tensor
                continue
            here, parts = waiting.setdefault(name, {}), self._parts[name]
            here[stored_name] = tensor
            if len(here) == len(parts):
                tensors = {part: here[of] for part, of in parts.items()}
                del waiting[name]
                yield name, QuantizedMatrix(name, self.scheme, self._formats[name], tensors)
