"""Owns what a quantized matrix is stored as: which tensors make it in each format, its logical shape, and how they become one.

Every format ends as a PackedWeight; kernels/quantized_linear/reference.py says what each means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch

from forebay.errors import CheckpointError
from gpu_executor.quant.config import Scheme
from kernels.quantized_linear import PackedWeight, dequantize, pack_awq, pack_gptq, pack_integers, pack_scaled
from kernels.quantized_linear.packed import unpack

Tensors = Mapping[str, torch.Tensor]  # by what follows the matrix's prefix
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Format:
    """A way to store a matrix: tensors behind one prefix, such as `P.qweight` and `P.scales` for `P.weight`."""

    main: str  # its presence says that there is such a matrix
    needed: tuple[str, ...]  # the others; `a|b` takes either
    optional: tuple[str, ...]
    pack: Callable[[Tensors, Scheme], PackedWeight]
    shape: Callable[[Mapping[str, Shape]], Shape]  # (out, in), of the tensors' shapes; raises ValueError
    turned: bool = True  # (out, in) whatever way round the layer keeps its plain weight


@dataclasses.dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """The tensors of a matrix, as they lie in the checkpoint."""

    name: str  # of the logical tensor
    scheme: Scheme
    format: Format
    tensors: Tensors

    def pack(self, device: torch.device) -> PackedWeight:
        """The matrix on a device. Raises CheckpointError for tensors that do not fit together."""
        try:
            return self.format.pack({part: tensor.to(device) for part, tensor in self.tensors.items()}, self.scheme)
        except ValueError as error:
            raise CheckpointError(f"tensor {self.name} ({self.scheme.method}): {error}") from None

    def unpack(self, packed: PackedWeight, dtype: torch.dtype, *, inputs_first: bool) -> torch.Tensor:
        """What pack gave, as the plain tensor that the layer would have: (in, out) where it keeps its inputs first."""
        matrix = dequantize(packed).to(dtype)
        return matrix.t() if inputs_first and self.format.turned else matrix


def _gptq_bits(shapes: Mapping[str, Shape]) -> int:
    """Layers may differ in it ("dynamic")."""
    (num_groups, dout), zeros = shapes["scales"], shapes["qzeros"]
    for num_bits in (4, 8):
        if zeros == (num_groups, dout * num_bits // 32) and dout * num_bits % 32 == 0:
            return num_bits
    raise ValueError(f"zeros {list(zeros)} are not those of scales {[num_groups, dout]} in four or eight bits")


def _gptq_shape(shapes: Mapping[str, Shape]) -> Shape:
    return shapes["qweight"][1], shapes["qweight"][0] * 32 // _gptq_bits(shapes)


def _pack_gptq(tensors: Tensors, scheme: Scheme) -> PackedWeight:
    num_bits = _gptq_bits({part: tuple(tensor.shape) for part, tensor in tensors.items()})
    din, num_groups = len(tensors["qweight"]) * 32 // num_bits, len(tensors["scales"])
    return pack_gptq(
        tensors["qweight"],
        tensors["qzeros"],
        tensors["scales"],
        tensors.get("g_idx"),
        zero_offset=scheme.zero_offset,
        num_bits=num_bits,
        group_size=din // num_groups if din % num_groups == 0 else scheme.group_size,
    )


def _awq_shape(shapes: Mapping[str, Shape]) -> Shape:
    return shapes["scales"][1], shapes["qweight"][0]


def _pack_awq(tensors: Tensors, _: Scheme) -> PackedWeight:
    return pack_awq(tensors["qweight"], tensors["qzeros"], tensors["scales"])


def _scaled_shape(shapes: Mapping[str, Shape]) -> Shape:
    return shapes["weight"]


def _pack_scaled(tensors: Tensors, scheme: Scheme) -> PackedWeight:
    scale, zeros = tensors.get("weight_scale", tensors.get("weight_scale_inv")), tensors.get("weight_zero_point")
    if zeros is not None and zeros.is_floating_point() and not zeros.float().any():
        zeros = None  # fp8 has none; some checkpoints say so at length
    return pack_scaled(tensors["weight"], scale, zeros, block=scheme.block)


def _packed_bits(width: int, din: int) -> int:
    for num_bits in (4, 8):
        if width == -(-din * num_bits // 32):
            return num_bits
    raise ValueError(f"rows of {width} words hold {din} inputs neither in four nor in eight bits")


def _packed_shape(shapes: Mapping[str, Shape]) -> Shape:
    """Of weight_shape it takes the content for the shape: headers do not tell the number of inputs."""
    dout, din = shapes["weight_shape"]
    _packed_bits(shapes["weight_packed"][1], din)
    return dout, din


def _pack_packed(tensors: Tensors, _: Scheme) -> PackedWeight:
    """Rows packed along the inputs, numbers as unsigned ones: theirs plus half the range. Zeros are packed along the outputs."""
    packed, scales = tensors["weight_packed"], tensors["weight_scale"]
    dout, din = tensors["weight_shape"].tolist()
    num_bits = _packed_bits(packed.shape[1], din)
    scales = scales.reshape(dout, -1) if scales.numel() % dout == 0 else scales.reshape(1, 1).repeat(dout, 1)
    num_groups = scales.shape[1]
    if len(packed) != dout or din % num_groups:
        raise ValueError(
            f"{list(packed.shape)} words and {num_groups} groups are not those of a weight ({dout}, {din})"
        )
    zeros, groups = tensors.get("weight_zero_point"), tensors.get("weight_g_idx")
    if zeros is not None:
        if zeros.dtype == torch.int32:
            zeros = unpack(zeros, 0, num_bits)[:dout]
        else:  # as numbers, in older checkpoints
            zeros = zeros.reshape(dout, -1).int() + (1 << num_bits - 1)
        zeros = zeros.t()
    if groups is not None and (groups < 0).any():  # a layer whose inputs are in order
        groups = None
    values = unpack(packed, 1, num_bits)[:, :din].t()
    return pack_integers(values, zeros, scales.t(), groups, num_bits=num_bits, group_size=din // num_groups)


_SCALED = Format(
    "weight", ("weight_scale|weight_scale_inv",), ("weight_zero_point",), _pack_scaled, _scaled_shape, turned=False
)
FORMATS: dict[str, tuple[Format, ...]] = {
    "fp8": (_SCALED,),
    "compressed-tensors": (
        Format(
            "weight_packed", ("weight_scale", "weight_shape"), ("weight_zero_point", "weight_g_idx"),
            _pack_packed, _packed_shape,
        ),
        _SCALED,
    ),
    "gptq": (Format("qweight", ("qzeros", "scales"), ("g_idx",), _pack_gptq, _gptq_shape),),
    "awq": (Format("qweight", ("qzeros", "scales"), (), _pack_awq, _awq_shape),),
}  # fmt: skip
