"""Owns the checks of precomputed embeddings: rows of the model's width for each item, and the extras that come with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media.decoded import Embeddings
from preprocess.media_item import EMBEDDINGS, MediaItem


def rows_per_item(embeddings: Embeddings, hidden_size: int) -> list[np.ndarray]:
    """(rows, D) of each item, of embeddings whose shapes alone tell where one ends: a list, or an array (items, rows, D).

    Raises InvalidRequest (MEDIA_UNUSABLE) for another width, as do the functions below.
    """
    rows = [part for value in embeddings.values for part in (value if value.ndim == 3 else [value])]
    for value in rows:
        _check_width(embeddings, value, hidden_size)
    return rows


def rows_by_counts(embeddings: Embeddings, hidden_size: int, counts: Sequence[int]) -> list[np.ndarray]:
    """(counts[i], D) of each item i: the embeddings may also be one array with the rows of all items."""
    rows = rows_per_item(embeddings, hidden_size)
    if len(rows) == 1 and len(counts) != 1 and len(rows[0]) == sum(counts):
        rows = np.split(rows[0], np.cumsum(counts)[:-1])
    if [len(value) for value in rows] != list(counts):
        found = ", ".join(f"{len(value):,}" for value in rows)
        wanted = ", ".join(f"{count:,}" for count in counts)
        raise unusable(f"{embeddings.modality} embeddings have {found} rows; the items need {wanted}")
    return rows


def extra(embeddings: Embeddings, name: str, num_columns: int) -> np.ndarray:
    """The extra of this name, (items, num_columns) of numbers above 0."""
    value = embeddings.extras.get(name)
    if value is None:
        raise unusable(f"{embeddings.modality} embeddings of this model come with {name}, which is missing")
    value = np.atleast_2d(np.asarray(value))
    if value.ndim != 2 or value.shape[1] != num_columns or not (value > 0).all():
        raise unusable(f"{name} has shape {list(value.shape)}; it must be {num_columns} numbers above 0 for each item")
    return value


def embedded_item(modality: str, rows: np.ndarray, facts: Any = None) -> MediaItem:
    """The item of rows (n, D)."""
    return MediaItem(modality, {EMBEDDINGS: np.ascontiguousarray(rows, np.float32)}, len(rows), facts)


def unusable(message: str) -> InvalidRequest:
    """The error for media that the model cannot take."""
    return InvalidRequest(message, ErrorReason.ERROR_REASON_MEDIA_UNUSABLE)


def _check_width(embeddings: Embeddings, rows: np.ndarray, hidden_size: int) -> None:
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != hidden_size:
        raise unusable(
            f"{embeddings.modality} embeddings of an item have shape {list(rows.shape)}; this model takes (rows, {hidden_size:,})"
        )
