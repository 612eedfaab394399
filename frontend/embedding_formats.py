"""Owns how embeddings are packed into bytes, little-endian, in the format that a client asks for."""

from __future__ import annotations

import numpy as np

from forebay.errors import InvalidRequest
from forebay.v1 import pooling_pb2 as api


def checked_format(number: int) -> int:
    """The format that this number stands for, float32 where it is left out; raises InvalidRequest for an unknown one."""
    if number == api.EMBEDDING_FORMAT_UNSPECIFIED:
        return api.EMBEDDING_FORMAT_FLOAT32
    if number not in api.EmbeddingFormat.values():
        raise InvalidRequest(f"{number} is not the number of a format", fields=(("format", "is not known"),))
    return number


def row_bytes(format: int, dimensions: int) -> int:
    """Bytes of one packed vector."""
    if format == api.EMBEDDING_FORMAT_BINARY:
        return (dimensions + 7) // 8
    return (
        dimensions
        * {api.EMBEDDING_FORMAT_FLOAT32: 4, api.EMBEDDING_FORMAT_FLOAT16: 2, api.EMBEDDING_FORMAT_INT8: 1}[format]
    )


def pack(vectors: np.ndarray, format: int) -> tuple[bytes, list[float]]:
    """(N, dimensions) float32 -> the packed rows, and for INT8 the scale of each row."""
    if format == api.EMBEDDING_FORMAT_INT8:
        largest = np.abs(vectors).max(axis=1, keepdims=True)  # (N, 1)
        scales = np.where(largest > 0, largest / 127, 1).astype("<f4")
        return np.rint(vectors / scales).clip(-127, 127).astype("i1").tobytes(), scales[:, 0].tolist()
    if format == api.EMBEDDING_FORMAT_BINARY:
        return np.packbits(vectors > 0, axis=1).tobytes(), []
    return vectors.astype("<f2" if format == api.EMBEDDING_FORMAT_FLOAT16 else "<f4").tobytes(), []


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(1 or N, D), (N, D) -> (N) cosines of the angles between rows; 0 where a vector has no length."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)  # (N)
    products = (first * second).sum(axis=1)
    return np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
