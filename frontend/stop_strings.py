"""Owns the search for stop strings in a text that comes in pieces, at a cost per character that does not depend on them."""

from __future__ import annotations

import functools
from collections.abc import Sequence


class StopAutomaton:
    """The strings as an automaton of Aho and Corasick: its state is the longest end of the text that begins one.

    match_lengths[state]: the longest string that ends here, or 0; open_lengths[state]: how much of the text's end may
    still become one.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        assert all(strings)
        self._next: list[dict[str, int]] = [{}]
        self.match_lengths, depths = [0], [0]
        for string in strings:
            state = 0
            for char in string:
                if char not in self._next[state]:
                    self._next[state][char] = len(self._next)
                    self._next.append({})
                    self.match_lengths.append(0)
                    depths.append(depths[state] + 1)
                state = self._next[state][char]
            self.match_lengths[state] = len(string)
        self._shorter = [0] * len(depths)
        self.open_lengths = depths
        self._link()

    def _link(self) -> None:
        queue = list(self._next[0].values())
        for state in queue:  # breadth first: it grows as it is walked
            shorter = self._shorter[state]
            self.match_lengths[state] = self.match_lengths[state] or self.match_lengths[shorter]
            if not self._next[state]:  # a string with nothing longer: seen through, it begins nothing itself
                self.open_lengths[state] = self.open_lengths[shorter]
            for char, longer in self._next[state].items():
                self._shorter[longer] = self.step(shorter, char)
                queue.append(longer)

    def step(self, state: int, char: str) -> int:
        """The state after one more character."""
        while char not in self._next[state]:
            if state == 0:
                return 0
            state = self._shorter[state]
        return self._next[state][char]


@functools.lru_cache(maxsize=16)
def stop_automaton(strings: tuple[str, ...]) -> StopAutomaton:
    """The automaton of these strings; the sequences of a request share it, for it never changes."""
    return StopAutomaton(strings)
