"""Precomputed embeddings become items where their shapes fit, and errors that name the shapes where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from forebay.errors import InvalidRequest
from preprocess.media.decoded import Embeddings
from preprocess.media_item import EMBEDDINGS
from preprocess.processors.precomputed import embedded_item, extra, rows_by_counts, rows_per_item


def embeddings(*shapes: tuple[int, ...], **extras: list[list[int]]) -> Embeddings:
    values = tuple(np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for shape in shapes)
    return Embeddings("image", values, {name: np.array(value) for name, value in extras.items()})


@pytest.mark.parametrize("shapes", [[(2, 3, 8)], [(3, 8), (3, 8)], [(1, 3, 8), (3, 8)]], ids=["array", "list", "mixed"])
def test_shapes_tell_items_apart(shapes: list[tuple[int, ...]]) -> None:
    assert [rows.shape for rows in rows_per_item(embeddings(*shapes), 8)] == [(3, 8)] * 2


@pytest.mark.parametrize("shapes", [[(5, 8)], [(1, 5, 8)], [(2, 8), (3, 8)]], ids=["joined", "array", "list"])
def test_counts_tell_items_apart(shapes: list[tuple[int, ...]]) -> None:
    first, second = rows_by_counts(embeddings(*shapes), 8, [2, 3])
    assert (first.shape, second.shape) == ((2, 8), (3, 8))
    assert first[0, 1] == 1


@pytest.mark.parametrize("shapes", [[(5, 8)], [(3, 8), (2, 8)], [(2, 8)]], ids=["joined", "swapped", "fewer"])
def test_other_counts_are_refused(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(InvalidRequest, match="rows; the items need 2, 4"):
        rows_by_counts(embeddings(*shapes), 8, [2, 4])


@pytest.mark.parametrize("shape", [(3, 9), (8,), (0, 8), (2, 3, 9), (1, 1, 3, 8)], ids=str)
def test_another_width_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        InvalidRequest, match=r"image embeddings of an item have shape \[.*; this model takes \(rows, 8\)"
    ):
        rows_per_item(embeddings(shape), 8)


def test_extras_have_a_row_for_each_item() -> None:
    given = embeddings((3, 8), grid=[[1, 2, 4]], size=[3, 4])
    assert extra(given, "grid", 3).tolist() == [[1, 2, 4]]
    assert extra(given, "size", 2).tolist() == [[3, 4]]
    for name, columns, problem in (("no", 2, "no, which is missing"), ("grid", 2, r"grid has shape \[1, 3\]")):
        with pytest.raises(InvalidRequest, match=problem):
            extra(given, name, columns)
    with pytest.raises(InvalidRequest, match="above 0"):
        extra(embeddings((3, 8), grid=[[1, 0, 4]]), "grid", 3)


def test_an_embedded_item_needs_no_tower() -> None:
    item = embedded_item("image", np.zeros((3, 8)), facts="grid")
    assert (item.num_features, item.facts, item.tensors[EMBEDDINGS].dtype) == (3, "grid", np.float32)
