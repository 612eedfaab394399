"""Owns the hash of a KV block, which executor (prefix cache) and frontend (prefix affinity) compute alike."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence


def root_digest(salt: bytes = b"", encoder_token_ids: Sequence[int] = ()) -> bytes:
    """The parent digest of a prompt's first block. Requests with different salts or encoder inputs share no block."""
    digest = hashlib.sha256(salt).digest()
    return block_digest(digest, encoder_token_ids) if encoder_token_ids else digest


def block_digest(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """SHA-256 over the parent's digest and the block's token ids as little-endian 32-bit integers."""
    return hashlib.sha256(parent + _int32_bytes(token_ids)).digest()


def block_digests(
    token_ids: Sequence[int], block_size: int, salt: bytes = b"", encoder_token_ids: Sequence[int] = ()
) -> Iterator[bytes]:
    """Digests of the full blocks of `token_ids`, in order, each over all that came before it."""
    digest = root_digest(salt, encoder_token_ids)
    for end in range(block_size, len(token_ids) + 1, block_size):
        digest = block_digest(digest, token_ids[end - block_size : end])
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
