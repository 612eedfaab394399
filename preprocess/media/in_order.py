"""Owns work on several things side by side, whose results come one after the other in the order of the things."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def in_order(work: Callable[[Thing], Result], things: Sequence[Thing], num_threads: int) -> Iterator[Result]:
    """What `work` makes of each thing, in order; `num_threads` of them are worked on at once, from the one awaited on.

    Raises what the first of them raises, in their order. Who stops taking results stops the work: of what comes after the last
    one taken, fewer than `num_threads` were begun, and nobody waits for their end.
    """
    if num_threads < 2 or len(things) < 2:
        yield from map(work, things)
        return
    left = iter(things)
    threads = ThreadPoolExecutor(min(num_threads, len(things)), thread_name_prefix="preprocess-items")
    try:
        begun = deque(threads.submit(work, thing) for thing in itertools.islice(left, num_threads))
        while begun:
            yield begun.popleft().result()
            begun.extend(threads.submit(work, thing) for thing in itertools.islice(left, 1))
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
