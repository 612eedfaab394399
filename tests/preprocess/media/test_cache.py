"""What is kept fits its budget, and the least recently used goes first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.media import cache as cache_module
from preprocess.media.cache import ByteCache

WIDE = 120.0  # seconds that are never waited for


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[str] = ByteCache(10)
    for key in (b"a", b"b"):
        cache.put(key, key.decode(), 5)
    assert cache.get(b"a") == "a"
    cache.put(b"c", "c", 5)
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c")) == ("a", None, "c")


def test_a_value_larger_than_the_budget_drives_nothing_out() -> None:
    cache: ByteCache[str] = ByteCache(10)
    cache.put(b"a", "a", 10)
    cache.put(b"b", "b", 11)
    assert (cache.get(b"a"), cache.get(b"b")) == ("a", None)


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 12)), max_size=40))
def test_the_budget_holds_and_the_latest_that_fits_is_there(puts: list[tuple[bytes, int]]) -> None:
    cache: ByteCache[int] = ByteCache(10)
    for key, size in puts:
        cache.put(key, size, size)
        assert cache.get(key) == (size if size <= 10 else None)
        assert cache.used_bytes == sum(cache.get(k) or 0 for k in (b"a", b"b", b"c", b"d")) <= 10


def test_what_is_not_held_is_made_and_kept() -> None:
    cache: ByteCache[str] = ByteCache(10)
    assert cache.get_or_make(b"a", lambda: ("a", 10)) == "a" == cache.get(b"a")
    assert cache.get_or_make(b"a", lambda: ("b", 1)) == "a"
    assert cache.get_or_make(b"c", lambda: ("c", 11)) == "c"  # though it cannot be kept
    assert cache.get(b"c") is None


def test_threads_that_want_the_same_have_it_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, waited_on = threading.Event(), threading.Event()

    class Watched(cache_module.Future):
        def result(self, timeout: float | None = None) -> str:
            waited_on.set()
            return super().result(timeout)

    def make() -> tuple[str, int]:
        begun.set()
        assert waited_on.wait(WIDE)
        return "a", 11  # what is too large to be kept, those who wait get all the same

    def make_again() -> tuple[str, int]:
        raise AssertionError("it is being made")

    monkeypatch.setattr(cache_module, "Future", Watched)
    cache: ByteCache[str] = ByteCache(10)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache.get_or_make, b"a", make)
        assert begun.wait(WIDE)
        second = threads.submit(cache.get_or_make, b"a", make_again)
        assert (first.result(), second.result()) == ("a", "a")


def test_what_cannot_be_made_is_tried_again_by_the_next() -> None:
    cache: ByteCache[str] = ByteCache(10)

    def fail() -> tuple[str, int]:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            cache.get_or_make(b"a", fail)
    assert cache.get_or_make(b"a", lambda: ("a", 1)) == "a"
