"""What is kept fits its budget, and the least recently used goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from preprocess.media.cache import ByteCache


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
