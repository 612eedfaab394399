"""Tensor <-> arrays: what is sent comes back bit for bit, and a message that disagrees with itself never becomes an array."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2
from preprocess.media.tensor_codec import FLOATS, INTEGERS, to_array
from tests.preprocess.media.files import reason_of
from tests.preprocess.media.tensors import to_tensor

TYPES = {
    "uint8": media_pb2.TENSOR_TYPE_UINT8,
    "int32": media_pb2.TENSOR_TYPE_INT32,
    "int64": media_pb2.TENSOR_TYPE_INT64,
    "float16": media_pb2.TENSOR_TYPE_FLOAT16,
    "float32": media_pb2.TENSOR_TYPE_FLOAT32,
}
ANY = tuple(media_pb2.TensorType.values())
SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)


def elements(dtype: str) -> st.SearchStrategy:
    if dtype.startswith("float"):
        return st.floats(allow_nan=False, allow_infinity=False, width=int(dtype[5:]))
    return arrays.from_dtype(np.dtype(dtype))


ARRAYS = st.sampled_from(sorted(TYPES)).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES, elements=elements(dtype)))


@given(ARRAYS)
def test_an_array_comes_back_bit_for_bit(array: np.ndarray) -> None:
    tensor = to_tensor(array)
    assert tensor.dtype == TYPES[array.dtype.name] and tuple(tensor.shape) == array.shape
    found = to_array(tensor, ANY, (array.ndim,))
    assert found.dtype == array.dtype and found.shape == array.shape
    assert found.tobytes() == array.tobytes()


@given(ARRAYS)
def test_the_order_of_bytes_and_of_memory_does_not_matter(array: np.ndarray) -> None:
    assert to_tensor(np.asfortranarray(array).astype(array.dtype.newbyteorder(">"))) == to_tensor(array)


@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_bfloat16_is_the_upper_half_of_float32(array: np.ndarray) -> None:
    upper = (array.view(np.uint32) >> 16).astype("<u2")
    tensor = media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_BFLOAT16, shape=array.shape, data=upper.tobytes())
    found = to_array(tensor, FLOATS, (array.ndim,))
    assert found.dtype == np.float32
    assert np.array_equal(found.view(np.uint32), array.view(np.uint32) & 0xFFFF0000)


def test_the_numbers_are_little_endian_and_the_last_dimension_is_the_fastest() -> None:
    tensor = media_pb2.Tensor(
        dtype=media_pb2.TENSOR_TYPE_INT32, shape=[2, 2], data=bytes.fromhex("01000000020000000300000004000000")
    )
    assert to_array(tensor, INTEGERS, (2,)).tolist() == [[1, 2], [3, 4]]


@given(
    st.sampled_from(ANY),
    st.lists(st.sampled_from([0, 1, 2, 3, 7, 2**16, 2**31, 2**32 - 1]), max_size=9),
    st.binary(max_size=64),
)
def test_any_message_is_an_array_that_fits_it_or_refused(dtype: int, shape: list[int], data: bytes) -> None:
    tensor = media_pb2.Tensor(dtype=dtype, shape=shape, data=data)
    try:
        found = to_array(tensor, ANY[1:], range(1, 5))
    except InvalidRequest as error:
        assert reason_of(error) in ("MEDIA_DECODE", "MEDIA_UNUSABLE")
    else:
        assert found.shape == tuple(shape)
        assert len(data) == math.prod(shape) * {1: 1, 2: 4, 3: 8, 4: 2, 5: 2, 6: 4}[dtype]


@pytest.mark.parametrize(
    ("tensor", "reason", "message"),
    [
        (
            media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_FLOAT32, shape=[2**32 - 1, 2**32 - 1], data=b""),
            "MEDIA_DECODE",
            "the tensor has 0 bytes; FLOAT32 of shape",
        ),
        (
            media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_FLOAT32, shape=[2**31, 2], data=b"\0" * 4),
            "MEDIA_DECODE",
            "17,179,869,184",
        ),
        (
            media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_FLOAT32, shape=[0, 2]),
            "MEDIA_UNUSABLE",
            "no dimension can be 0",
        ),
        (media_pb2.Tensor(shape=[1, 1], data=b"\0"), "MEDIA_UNUSABLE", "dtype is UNSPECIFIED"),
        (media_pb2.Tensor(dtype=77, shape=[1, 1], data=b"\0"), "MEDIA_UNUSABLE", "dtype is 77"),
        (
            media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_INT32, shape=[1, 1], data=b"\0\0\0\0"),
            "MEDIA_UNUSABLE",
            "dtype is INT32; it can be FLOAT16, BFLOAT16, FLOAT32",
        ),
        (
            media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_FLOAT32, shape=[1] * 9, data=b"\0\0\0\0"),
            "MEDIA_UNUSABLE",
            "9 dimensions; it can have 2",
        ),
    ],
    ids=["overflow", "overflow-of-32-bits", "zero", "no-type", "unknown-type", "integers", "nine-dimensions"],
)
def test_a_message_that_disagrees_with_itself_says_how(tensor: media_pb2.Tensor, reason: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        to_array(tensor, FLOATS, (2,))
    assert reason_of(raised.value) == reason and message in raised.value.message


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_numbers_that_are_not_finite_are_refused(dtype: str, bad: str) -> None:
    array = np.array([[1.0, float(bad)]], np.float32 if dtype == "bfloat16" else dtype)
    if dtype == "bfloat16":
        data = (array.view(np.uint32) >> 16).astype("<u2").tobytes()
        tensor = media_pb2.Tensor(dtype=media_pb2.TENSOR_TYPE_BFLOAT16, shape=array.shape, data=data)
    else:
        tensor = to_tensor(array)
    with pytest.raises(InvalidRequest, match="not finite") as raised:
        to_array(tensor, FLOATS, (2,))
    assert reason_of(raised.value) == "MEDIA_UNUSABLE"
