"""Owns arrays out of the public Tensor. Nothing of a tensor is believed before its shape, type and bytes agree."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from forebay.v1 import media_pb2
from preprocess.media.limits import undecodable, unusable

MAX_DIMENSIONS = 4
FLOATS = (media_pb2.TENSOR_TYPE_FLOAT16, media_pb2.TENSOR_TYPE_BFLOAT16, media_pb2.TENSOR_TYPE_FLOAT32)
INTEGERS = (media_pb2.TENSOR_TYPE_INT32, media_pb2.TENSOR_TYPE_INT64)

_NUMPY = {
    media_pb2.TENSOR_TYPE_UINT8: np.dtype("u1"),
    media_pb2.TENSOR_TYPE_INT32: np.dtype("<i4"),
    media_pb2.TENSOR_TYPE_INT64: np.dtype("<i8"),
    media_pb2.TENSOR_TYPE_FLOAT16: np.dtype("<f2"),
    media_pb2.TENSOR_TYPE_BFLOAT16: np.dtype("<u2"),  # the bits: numpy has no such number
    media_pb2.TENSOR_TYPE_FLOAT32: np.dtype("<f4"),
}


def to_array(tensor: media_pb2.Tensor, dtypes: Collection[int], dimensions: Collection[int]) -> np.ndarray:
    """The numbers of a tensor, in the machine's own type, read-only; BFLOAT16 becomes float32.

    Raises InvalidRequest: MEDIA_DECODE where bytes and shape differ, MEDIA_UNUSABLE for a type or a number of dimensions
    that is not taken, and for numbers that are not finite.
    """
    if tensor.dtype not in dtypes:
        wanted = ", ".join(_name(dtype) for dtype in dtypes)
        raise unusable(f"the tensor's dtype is {_name(tensor.dtype)}; it can be {wanted}")
    shape = tuple(tensor.shape)
    if len(shape) not in dimensions:
        wanted = " or ".join(map(str, sorted(dimensions)))
        raise unusable(f"the tensor has {len(shape)} dimensions; it can have {wanted}")
    if 0 in shape:
        raise unusable(f"the tensor's shape is {list(shape)}; no dimension can be 0")
    dtype = _NUMPY[tensor.dtype]
    num_bytes = math.prod(shape) * dtype.itemsize  # Python's integers do not overflow
    if num_bytes != len(tensor.data):
        raise undecodable(
            f"the tensor has {len(tensor.data):,} bytes; {_name(tensor.dtype)} of shape {list(shape)} has {num_bytes:,}"
        )
    array = np.frombuffer(tensor.data, dtype).reshape(shape)
    if tensor.dtype == media_pb2.TENSOR_TYPE_BFLOAT16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if tensor.dtype in FLOATS and not np.isfinite(array).all():
        raise unusable("the tensor has values that are not finite numbers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _name(dtype: int) -> str:
    known = dtype in media_pb2.TensorType.values()
    return media_pb2.TensorType.Name(dtype).removeprefix("TENSOR_TYPE_") if known else str(dtype)
