"""Owns how far a step can go into prompts with media: features must be there, or be computed in the same step."""

from __future__ import annotations

from collections.abc import Iterable

from gpu_executor.encoder_cache import EncoderCache
from gpu_executor.media import MediaInput
from gpu_executor.request import Sequence


class MediaReach:
    """Holds features for running sequences, from the step that first needs them to the one that computes their last token."""

    def __init__(self, cache: EncoderCache, max_rows_per_step: int) -> None:
        """`max_rows_per_step`: features to compute in a step at most, beside the first item, which may be larger."""
        self.cache, self._max_rows = cache, max_rows_per_step
        self._rows_left = max_rows_per_step

    def begin_step(self) -> None:
        """A new step: its features are counted from 0."""
        self._rows_left = self._max_rows

    def limit(self, sequence: Sequence, start: int, count: int) -> int:
        """How many of `count` tokens from `start` on can be computed in this step; holds what they need of media."""
        for index, item in enumerate(sequence.request.media):
            first = item.first_row(start, start + count)
            if first is not None and index not in sequence.held_media and not self._hold(item):
                return first - start
            if first is not None:
                sequence.held_media.add(index)
        return count

    def _hold(self, item: MediaInput) -> bool:
        num_new = 0 if item.digest in self.cache else item.num_features
        if not self._has_time(num_new) or not self.cache.hold(item.digest, item.num_features):
            return False
        self._rows_left -= num_new
        return True

    def _has_time(self, num_new: int) -> bool:
        """Whether the step can compute so many features more; the first ones may be more than it should."""
        return num_new <= self._rows_left or self._rows_left == self._max_rows

    def release_passed(self, sequence: Sequence) -> None:
        """Lets go of items all of whose tokens are computed."""
        media = sequence.request.media
        self._release(sequence, [i for i in sequence.held_media if media[i].end <= sequence.num_computed_tokens])

    def release(self, sequence: Sequence) -> None:
        """Lets go of all that the sequence holds."""
        self._release(sequence, list(sequence.held_media))

    def _release(self, sequence: Sequence, indexes: list[int]) -> None:
        for index in indexes:
            self.cache.release(sequence.request.media[index].digest)
            sequence.held_media.discard(index)

    def to_compute(self, sequences: Iterable[Sequence]) -> list[MediaInput]:
        """Items that the sequences hold and whose features are not there, each digest once."""
        found: dict[bytes, MediaInput] = {}
        for sequence in sequences:
            for index in sorted(sequence.held_media):
                item = sequence.request.media[index]
                if item.digest not in self.cache:
                    found.setdefault(item.digest, item)
        return list(found.values())


class CrossMediaReach(MediaReach):
    """The same for models that read media by cross attention: all of a request's features are needed in its first step alone.

    That step makes of them what the layers keep. Every item has `item_rows` features.
    """

    def __init__(self, cache: EncoderCache, max_rows_per_step: int, item_rows: int) -> None:
        super().__init__(cache, max_rows_per_step)
        self._item_rows = item_rows

    def limit(self, sequence: Sequence, start: int, count: int) -> int:
        """`count`, or 0 where the sequence has to wait for room."""
        if sequence.request.is_encoded or sequence.held_media:
            return count
        return count if self._hold_all(sequence) else 0

    def _hold_all(self, sequence: Sequence) -> bool:
        """Holds all items, or none."""
        media = sequence.request.media
        num_new = self._item_rows * len({item.digest for item in media if item.digest not in self.cache})
        if not self._has_time(num_new):
            return False
        for index, item in enumerate(media):
            if not self.cache.hold(item.digest, self._item_rows):
                self.release(sequence)
                return False
            sequence.held_media.add(index)
        self._rows_left -= num_new
        return True

    def release_passed(self, sequence: Sequence) -> None:
        """Lets go of everything: what the layers keep is made."""
        self.release(sequence)
