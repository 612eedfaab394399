"""Owns the way of a prompt's media to items: found, decoded, processed, and kept for the next prompt with the same media."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

from forebay.errors import InvalidRequest
from forebay.v1 import media_pb2
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media.cache import ByteCache
from preprocess.media.decoded import DecodedMedia
from preprocess.media.in_order import in_order
from preprocess.media.limits import MediaLimits, undecodable, unusable
from preprocess.media.messages import modality_of, named, num_items, samples_digest
from preprocess.media.samples import read_embeddings, read_samples
from preprocess.media_item import MediaItem
from preprocess.processors.processor import Processor

ITEM_CACHE_BYTES = 256 << 20
FILE_CACHE_BYTES = 256 << 20

Decode = Callable[[bytes, str, MediaLimits, int | None], DecodedMedia]  # see preprocess.media.decoder.decode
Fetch = Callable[[str, int], bytes]  # (url, most bytes)
PlacedMedia = Sequence[tuple[str, media_pb2.Media]]  # each with the path of its field


class MediaPreparer:
    """Makes items of media for one processor. Threads may share one."""

    def __init__(
        self,
        processor: Processor,
        decode: Decode,
        *,
        limits: MediaLimits,
        fetch: Fetch | None = None,
        num_threads: int = 1,
        item_cache_bytes: int = ITEM_CACHE_BYTES,
        file_cache_bytes: int = FILE_CACHE_BYTES,
    ) -> None:
        """Without `fetch`, URLs are refused. `num_threads` is how many items of a prompt are made side by side."""
        self.processor = processor
        self._decode, self._limits, self._fetch, self._num_threads = decode, limits, fetch, num_threads
        self._items: ByteCache[MediaItem] = ByteCache(item_cache_bytes)
        self._files: ByteCache[bytes] = ByteCache(file_cache_bytes)

    def prepare(self, media: PlacedMedia, max_tokens: int | None = None) -> list[list[MediaItem]]:
        """The items of each message; raises InvalidRequest naming the first message that is refused.

        It is refused before anything is decoded where that can be, and before the rest is where items up to one have more
        features than `max_tokens` (TOO_LONG).
        """
        self._check(media)
        found: list[list[MediaItem] | None] = []
        for path, message in media:
            with named(path):
                found.append(self._accept(message) if message.WhichOneof("content") == "embeddings" else None)
        counts: Counter[str] = Counter()
        for (_, message), items in zip(media, found, strict=True):
            counts[modality_of(message)] += 1 if items is None else len(items)
        room = _Room(max_tokens)
        for (path, _), items in zip(media, found, strict=True):
            room.take(path, items or ())

        def make(index: int) -> MediaItem:
            path, message = media[index]
            with named(path):
                return self._item(message, counts[modality_of(message)])

        missing = [index for index, items in enumerate(found) if items is None]
        with contextlib.closing(in_order(make, missing, self._num_threads)) as made:
            for index, item in zip(missing, made, strict=True):
                room.take(media[index][0], (item,))
                found[index] = [item]
        return found

    def items(self, media: PlacedMedia, max_tokens: int | None = None) -> list[MediaItem]:
        """The same in one list."""
        return list(itertools.chain.from_iterable(self.prepare(media, max_tokens)))

    def _check(self, media: PlacedMedia) -> None:
        counts: Counter[str] = Counter()
        for path, message in media:
            with named(path):
                modality = modality_of(message)
                if modality not in self.processor.modalities:
                    taken = " and ".join(self.processor.modalities)
                    raise unusable(f"this model takes no {modality} items; it takes {taken} items")
                counts[modality] += num_items(message)
                self._limits.check_count(modality, counts[modality])

    def _accept(self, message: media_pb2.Media) -> list[MediaItem]:
        return self.processor.accept(read_embeddings(message.embeddings, modality_of(message)))

    def _item(self, message: media_pb2.Media, num_items: int) -> MediaItem:
        """The item of media in a prompt with `num_items` of its modality."""
        modality, content = modality_of(message), message.WhichOneof("content")
        if content == "samples":
            digest = samples_digest(message)
        elif content is None:
            raise undecodable("it has no content")
        else:
            data = self._file(message)
            digest = hashlib.sha256(data).digest()
            self._files.put(digest, data, len(data))
        key = hashlib.sha256(f"{modality}\0{content == 'samples'}\0{num_items}\0".encode() + digest).digest()

        def make() -> tuple[MediaItem, int]:
            rate = self.processor.sample_rate
            if content == "samples":
                decoded = read_samples(message, modality, self._limits, rate)
            else:
                decoded = self._decode(data, modality, self._limits, rate)
            item = self.processor.prepare(decoded, num_items)
            return item, sum(tensor.nbytes for tensor in item.tensors.values())

        return self._items.get_or_make(key, make)

    def _file(self, message: media_pb2.Media) -> bytes:
        content = message.WhichOneof("content")
        if content == "data":
            self._limits.check_file(len(message.data))
            return message.data
        if content == "url":
            if self._fetch is None:
                raise _unfetched("media is not fetched from URLs here: send its bytes")
            return self._fetch(message.url, self._limits.file_bytes)
        data = self._files.get(message.digest)
        if data is None:
            raise _unfetched("there is no file of this digest here any more: send its bytes")
        return data


class _Room:
    """What is left of a context for the features of items: each takes a token of the prompt."""

    def __init__(self, max_tokens: int | None) -> None:
        self._max_tokens, self._num_features = max_tokens, 0

    def take(self, path: str, items: Sequence[MediaItem]) -> None:
        """Raises InvalidRequest (TOO_LONG) at the message, by its path, whose items have no room."""
        self._num_features += sum(item.num_features for item in items)
        if self._max_tokens is not None and self._num_features > self._max_tokens:
            problem = (
                f"with it, media takes {self._num_features:,} tokens or more; the model takes {self._max_tokens:,}"
            )
            raise InvalidRequest(f"{path}: {problem}", ErrorReason.ERROR_REASON_TOO_LONG, fields=((path, problem),))


def _unfetched(message: str) -> InvalidRequest:
    return InvalidRequest(message, ErrorReason.ERROR_REASON_MEDIA_FETCH)
