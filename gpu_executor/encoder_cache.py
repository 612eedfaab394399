"""Owns the features of media: kept by digest within a budget of rows, as long as running sequences need them and beyond."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any


@dataclasses.dataclass(slots=True)
class _Entry:
    num_rows: int
    num_users: int = 0
    features: Any = None  # (n, D); None until they are computed


class EncoderCache:
    """Features by digest. Those with users stay; the others go, longest unused first, when rows are needed."""

    def __init__(self, max_rows: int) -> None:
        self.max_rows, self.num_rows = max_rows, 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        """Whether the features are there, computed."""
        entry = self._entries.get(digest)
        return entry is not None and entry.features is not None

    def hold(self, digest: bytes, num_rows: int) -> bool:
        """Counts one more user, making room for features that are not there; False if there is no room."""
        entry = self._entries.get(digest)
        if entry is None:
            if not self._make_room(num_rows):
                return False
            entry = self._entries[digest] = _Entry(num_rows)
            self.num_rows += num_rows
        entry.num_users += 1
        return True

    def release(self, digest: bytes) -> None:
        """Counts one user less. Features that nobody uses are kept while there is room, if they were computed."""
        entry = self._entries[digest]
        entry.num_users -= 1
        self._entries.move_to_end(digest)
        if not entry.num_users and entry.features is None:
            self._drop(digest)

    def put(self, digest: bytes, features: Any) -> None:
        """Keeps computed features (n, D) that somebody holds."""
        self._entries[digest].features = features

    def __getitem__(self, digest: bytes) -> Any:
        return self._entries[digest].features

    def _make_room(self, num_rows: int) -> bool:
        spare = sum(entry.num_rows for entry in self._entries.values() if not entry.num_users)
        if self.num_rows - spare + num_rows > self.max_rows:
            return False
        for digest in [digest for digest, entry in self._entries.items() if not entry.num_users]:
            if self.num_rows + num_rows <= self.max_rows:
                break
            self._drop(digest)
        return True

    def _drop(self, digest: bytes) -> None:
        self.num_rows -= self._entries.pop(digest).num_rows

    def check(self) -> None:
        """Raises AssertionError when the counts disagree."""
        assert self.num_rows == sum(entry.num_rows for entry in self._entries.values()) <= self.max_rows
        assert all(entry.num_users or entry.features is not None for entry in self._entries.values())
