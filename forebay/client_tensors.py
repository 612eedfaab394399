"""Owns how arrays of numpy and tensors of torch become Tensor messages, without importing either."""

from __future__ import annotations

import array as arrays
import sys
from collections.abc import Sequence
from typing import Any

from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2

_FLOATS = {"float16": media_pb2.TENSOR_TYPE_FLOAT16, "float32": media_pb2.TENSOR_TYPE_FLOAT32}


def is_array(value: Any) -> bool:
    """Whether it is an array of numpy, a tensor of torch, or like one of them."""
    return hasattr(value, "__array__") and hasattr(value, "shape") and hasattr(value, "dtype")


class ArrayView:
    """What an array of either package says of itself in the same words."""

    def __init__(self, value: Any) -> None:
        if hasattr(value, "detach"):  # a tensor of torch
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":
                value = value.float()
            value = value.numpy()
        self.values = value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def ndim(self) -> int:
        return len(self.values.shape)

    @property
    def dtype(self) -> str:
        return str(self.values.dtype)

    @property
    def is_float(self) -> bool:
        return self.values.dtype.kind == "f"

    def bytes_of(self, dtype: str) -> bytes:
        """The numbers as this type, little-endian, the last dimension fastest."""
        return self.values.astype(dtype).tobytes()


def array_of(value: Any) -> ArrayView:
    """The array; see is_array."""
    return value if isinstance(value, ArrayView) else ArrayView(value)


def pixel_tensor(array: ArrayView, ndim: int, field: str) -> media_pb2.Tensor:
    """(H, W, 3) or (H, W) with `ndim` 3, (frames, H, W, 3) with 4; channels that come before the height are moved behind."""
    if array.dtype != "uint8":
        raise _wrong(field, f"is an array of {array.dtype}; pixels are uint8")
    if array.ndim == ndim and array.shape[-1] != 3 and array.shape[-3] == 3:
        order = (1, 2, 0) if ndim == 3 else (0, 2, 3, 1)
        array = ArrayView(array.values.transpose(order))
    if array.ndim not in (ndim, 2 if ndim == 3 else ndim) or (array.ndim == ndim and array.shape[-1] != 3):
        wanted = "(height, width, 3) or (height, width)" if ndim == 3 else "(frames, height, width, 3)"
        raise _wrong(field, f"has the shape {list(array.shape)}; it can be {wanted}")
    return media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_UINT8, shape=array.shape, data=array.bytes_of("u1"))


def sound_tensor(samples: ArrayView | Sequence[float], field: str) -> media_pb2.Tensor:
    """(samples,) float32; whole numbers of 16 bits are brought to [-1, 1], several channels become their mean."""
    if not isinstance(samples, ArrayView):
        try:
            floats = arrays.array("f", samples)
        except (TypeError, ValueError) as error:
            raise _wrong(field, f"must be samples ({error})") from None
        if sys.byteorder == "big":
            floats.byteswap()
        return media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_FLOAT32, shape=[len(floats)], data=floats.tobytes())
    values = samples.values
    if samples.dtype == "int16":
        values = values.astype("f4") / 32768
    elif not samples.is_float:
        raise _wrong(field, f"is an array of {samples.dtype}; samples are floats or int16")
    if samples.ndim == 2:  # one of the dimensions is the channels: the shorter one
        values = values.astype("f4").mean(axis=0 if samples.shape[0] < samples.shape[1] else 1)
    elif samples.ndim != 1:
        raise _wrong(field, f"has {samples.ndim} dimensions; samples have one, or two with the channels")
    return media_pb2.Tensor(
        dtype=media_pb2.TENSOR_TYPE_FLOAT32, shape=[len(values)], data=values.astype("<f4").tobytes()
    )


def float_tensor(array: ArrayView, field: str) -> media_pb2.Tensor:
    """Floats of any shape; those of 64 bits become 32."""
    if not array.is_float:
        raise _wrong(field, f"is an array of {array.dtype}; embeddings are floats")
    dtype = "float16" if array.dtype == "float16" else "float32"
    data = array.bytes_of("<f2" if dtype == "float16" else "<f4")
    return media_pb2.Tensor(dtype=_FLOATS[dtype], shape=array.shape, data=data)


def integer_tensor(value: Any, field: str) -> media_pb2.Tensor:
    """(items, columns) int64 of an array, of rows in a list, or of one row."""
    rows = array_of(value).values.tolist() if is_array(value) else value
    if isinstance(rows, list | tuple) and rows and all(is_array(row) for row in rows):
        rows = [array_of(row).values.tolist() for row in rows]
    if isinstance(rows, list | tuple) and rows and isinstance(rows[0], int):
        rows = [rows]
    try:
        flat = arrays.array("q", [number for row in rows for number in row])
        (columns,) = {len(row) for row in rows}
    except (TypeError, ValueError, OverflowError):
        raise _wrong(field, "must be rows of whole numbers, all of one length") from None
    if sys.byteorder == "big":
        flat.byteswap()
    return media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_INT64, shape=(len(rows), columns), data=flat.tobytes())


def _wrong(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {problem}", fields=((field, problem),))
