"""Owns which slots hold the state at the end of which prefix, by digest. It knows no tensors.

Blocks of KV hold every position of a prefix, so that a sequence can start anywhere in it. A state space knows only the
present: a sequence can start where a copy of that state was made, and nowhere else.

free ──reserve──▶ reserved ──store──▶ stored ──drop, or reserved for another──▶
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class SnapshotCache:
    """States of prefixes in a fixed number of slots; the one that was not used for longest makes room.

    A passing snapshot is one that its sequence replaces as it goes on, unless another has started there meanwhile.
    """

    def __init__(self, slots: Iterable[int]) -> None:
        self._free = list(slots)
        self.num_slots = len(self._free)
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # least recently used first
        self._passing: set[bytes] = set()
        self._num_reserved = 0

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._slot_of

    def longest(self, digests: Sequence[bytes]) -> int:
        """How many of these blocks' digests from the first on lead to the last state that is known; 0 if none is."""
        return next((count for count in range(len(digests), 0, -1) if digests[count - 1] in self._slot_of), 0)

    def use(self, digest: bytes) -> int:
        """The slot of a state that is known, from which a sequence starts now."""
        self._slot_of.move_to_end(digest)
        self._passing.discard(digest)
        return self._slot_of[digest]

    def reserve(self, replacing: bytes | None = None) -> int | None:
        """A slot for a new state: that of the passing one which it replaces, a free one, or the least recently used one's."""
        if replacing in self._passing:
            self._free.append(self._forget(replacing))
        if not self._free and self._slot_of:
            self._free.append(self._forget(next(iter(self._slot_of))))
        if not self._free:
            return None
        self._num_reserved += 1
        return self._free.pop()

    def store(self, digest: bytes, slot: int, *, passing: bool) -> None:
        """Lets others find the state that a reserved slot holds now, unless it is known already."""
        self._num_reserved -= 1
        if digest in self._slot_of:
            self._free.append(slot)
        else:
            self._slot_of[digest] = slot
            if passing:
                self._passing.add(digest)

    def drop(self, digest: bytes) -> None:
        """Nobody can start there any more, because the blocks that belong to the state are gone."""
        if digest in self._slot_of:
            self._free.append(self._forget(digest))

    def _forget(self, digest: bytes) -> int:
        self._passing.discard(digest)
        return self._slot_of.pop(digest)

    def check(self) -> None:
        """Raises AssertionError when slots were lost or given out twice."""
        known = [*self._free, *self._slot_of.values()]
        assert len(set(known)) == len(known) == self.num_slots - self._num_reserved
        assert self._passing <= self._slot_of.keys()
