"""Arrays as the public Tensor, written without what the clients share with each other."""

from __future__ import annotations

import numpy as np

from forebay.v1 import media_pb2

_TYPES = {
    "|u1": media_pb2.TENSOR_TYPE_UINT8,
    "<i4": media_pb2.TENSOR_TYPE_INT32,
    "<i8": media_pb2.TENSOR_TYPE_INT64,
    "<f2": media_pb2.TENSOR_TYPE_FLOAT16,
    "<f4": media_pb2.TENSOR_TYPE_FLOAT32,
}


def to_tensor(array: np.ndarray) -> media_pb2.Tensor:
    """The message of an array of one of these types."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return media_pb2.Tensor(dtype=_TYPES[little.dtype.str], shape=array.shape, data=little.tobytes())
