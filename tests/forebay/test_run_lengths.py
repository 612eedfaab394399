"""What is written short comes back as it was, and what cannot have been written is refused."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from forebay.errors import InvalidRequest
from forebay.run_lengths import MAX_TOKENS, lengthen, lengthen_positions, shorten, shorten_positions


@given(st.lists(st.integers(0, 3)))
def test_runs_come_back(values: list[int]) -> None:
    runs, counts = shorten(values)
    assert lengthen(runs.tolist(), counts.tolist()).tolist() == values
    assert all(a != b for a, b in itertools.pairwise(runs))


@given(st.integers(1, 3), st.lists(st.integers(0, 5), min_size=1, max_size=30), st.randoms())
def test_positions_come_back(num_axes: int, row: list[int], random: object) -> None:
    axes = np.array([random.sample(row, len(row)) for _ in range(num_axes)])
    steps, counts = shorten_positions(axes)
    assert lengthen_positions(steps.tolist(), counts.tolist(), num_axes, len(row)).tolist() == axes.tolist()


def test_a_pictures_positions_are_a_few_runs_a_row() -> None:
    rows, columns = 26, 46
    grid = np.stack([np.zeros((rows, columns)), *np.indices((rows, columns))]).reshape(3, -1).astype(int)
    assert len(shorten_positions(grid)[0]) <= 4 * rows + 4


def test_no_axes_are_no_positions() -> None:
    assert lengthen_positions([], [], 0, 9) is None


@pytest.mark.parametrize(
    ("steps", "counts"), [([1, 2], [1]), ([1], [5]), ([1], [MAX_TOKENS + 1])], ids=["lists", "number", "too-many"]
)
def test_runs_that_cannot_be_are_refused(steps: list[int], counts: list[int]) -> None:
    with pytest.raises(InvalidRequest):
        lengthen_positions(steps, counts, 1, 3)
