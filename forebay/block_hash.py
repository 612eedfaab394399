"""Owns the hash of a KV block, which executor (prefix cache) and frontend (prefix affinity) compute alike."""

from __future__ import annotations

import bisect
import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence


def root_digest(salt: bytes = b"", encoder_token_ids: Sequence[int] = ()) -> bytes:
    """The parent digest of a prompt's first block. Requests with different salts or encoder inputs share no block."""
    digest = hashlib.sha256(salt).digest()
    return block_digest(digest, encoder_token_ids) if encoder_token_ids else digest


def block_digest(parent: bytes, token_ids: Sequence[int], media: bytes = b"") -> bytes:
    """SHA-256 over the parent's digest, the block's token ids as little-endian 32-bit integers, and its MediaMap.key."""
    return hashlib.sha256(parent + _int32_bytes(token_ids) + media).digest()


class MediaMap:
    """Where a prompt's tokens stand for media: blocks with equal ids are equal only if they hold the same of it."""

    def __init__(self, spans: Iterable[tuple[int, int, bytes]] = ()) -> None:
        """`spans`: (start, length, digest of the item) in ascending order."""
        self._spans = list(spans)
        self._ends = [start + length for start, length, _ in self._spans]

    def key(self, start: int, end: int) -> bytes:
        """What tells tokens [start, end) from others with the same ids; empty where they stand for no media."""
        if not self._spans:
            return b""
        first = bisect.bisect_right(self._ends, start)
        found = itertools.takewhile(lambda span: span[0] < end, self._spans[first:])
        return b"".join(_int32_bytes([at - start, length]) + digest for at, length, digest in found)


def block_digests(
    token_ids: Sequence[int],
    block_size: int,
    salt: bytes = b"",
    encoder_token_ids: Sequence[int] = (),
    media: MediaMap | None = None,
) -> Iterator[bytes]:
    """Digests of the full blocks of `token_ids`, in order, each over all that came before it."""
    digest = root_digest(salt, encoder_token_ids)
    media = media or MediaMap()
    for end in range(block_size, len(token_ids) + 1, block_size):
        digest = block_digest(digest, token_ids[end - block_size : end], media.key(end - block_size, end))
        yield digest


def short_hash(digest: bytes) -> int:
    """The 64 bits of a digest that travel in CacheEvents."""
    return int.from_bytes(digest[:8], "little")


def _int32_bytes(token_ids: Sequence[int]) -> bytes:
    data = array("i", token_ids)
    if _BIG_ENDIAN:
        data.byteswap()
    return data.tobytes()


_BIG_ENDIAN = array("i", [1]).tobytes()[0] == 0
