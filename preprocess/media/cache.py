"""Owns what is kept for the next request that needs it: the most recently used, within a budget of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Values by digest. Threads may share one. A value larger than the budget is not kept."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes, self._used_bytes = budget_bytes, 0
        self._values: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._made: dict[bytes, Future[Value]] = {}  # what some thread is making
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        """What the values take."""
        return self._used_bytes

    def get(self, key: bytes) -> Value | None:
        """The value, which is now the most recently used one; None if it is not held."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def get_or_make(self, key: bytes, make: Callable[[], tuple[Value, int]]) -> Value:
        """The value, which `make` gives, and its bytes, if it is not held; raises what that raises.

        Of threads that want the same at once, one makes it and the others wait.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
            made = self._made.get(key)
            is_ours = made is None
            if made is None:
                made = self._made[key] = Future()
        if not is_ours:
            return made.result()
        try:
            value, num_bytes = make()
            self.put(key, value, num_bytes)
            made.set_result(value)
            return value
        except BaseException as error:
            made.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._made[key]

    def put(self, key: bytes, value: Value, num_bytes: int) -> None:
        """Keeps the value, and forgets others where it needs their room."""
        with self._lock:
            if key in self._values:
                self._used_bytes -= self._values.pop(key)[1]
            if num_bytes > self._budget_bytes:
                return
            self._values[key] = (value, num_bytes)
            self._used_bytes += num_bytes
            while self._used_bytes > self._budget_bytes:
                _, (_, freed_bytes) = self._values.popitem(last=False)
                self._used_bytes -= freed_bytes
