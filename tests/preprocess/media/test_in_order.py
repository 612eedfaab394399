"""Work side by side gives what one after the other would: results in order, the first error, and nothing begun in vain."""

from __future__ import annotations

import contextlib
import threading

import pytest

from preprocess.media.in_order import in_order

WIDE = 120.0  # seconds that are never waited for


@pytest.mark.parametrize("num_threads", [1, 2, 3, 10])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_results_are_in_order(num_threads: int, count: int) -> None:
    assert list(in_order(lambda number: number * number, range(count), num_threads)) == [n * n for n in range(count)]


def test_things_are_worked_on_at_once() -> None:
    together = threading.Barrier(3, timeout=WIDE)
    assert len(list(in_order(lambda _: together.wait(), range(6), 3))) == 6


@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_first_error_in_order_wins_whichever_comes_first(num_threads: int) -> None:
    later_failed = threading.Event()

    def work(number: int) -> int:
        if number == 2:
            later_failed.set()
        if number == 1 and num_threads > 1:
            assert later_failed.wait(WIDE)
        if number:
            raise ValueError(f"thing {number}")
        return number

    results = in_order(work, range(4), num_threads)
    assert next(results) == 0
    with pytest.raises(ValueError, match="thing 1"):
        next(results)


@pytest.mark.parametrize(("num_threads", "most"), [(1, 2), (2, 3), (4, 5)])
def test_who_stops_taking_results_stops_the_work(num_threads: int, most: int) -> None:
    begun: list[int] = []
    with contextlib.closing(in_order(lambda number: begun.append(number), range(100), num_threads)) as results:
        next(results)
        next(results)
    assert 2 <= len(begun) <= most and set(begun) <= set(range(most))
