"""Owns tokenizers made of a tiktoken file: one token a line, as base64 of its bytes, and its rank.

tiktoken cuts text with a regular expression, takes a cut as one token if the file has it, and otherwise joins those two
neighbours whose join has the lowest rank, again and again. Byte-pair merges in the order of the joins' ranks do the same.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from forebay.errors import CheckpointError


def is_tiktoken_file(path: Path) -> bool:
    """Whether the first line is base64 and a rank, as no sentencepiece model begins."""
    with path.open("rb") as file:
        parts = file.readline(4096).split()
    try:
        return len(parts) == 2 and bool(base64.b64decode(parts[0], validate=True)) and parts[1].isdigit()
    except binascii.Error:
        return False


def read_ranks(path: Path) -> dict[bytes, int]:
    """Each token's rank, which is its id. Raises CheckpointError for a file that is none, or lacks ids or bytes."""
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} of the checkpoint is not a tiktoken file: {error}") from error
    return checked_ranks(ranks, path.name)


def checked_ranks(ranks: dict[bytes, int], file: str) -> dict[bytes, int]:
    """The ranks as they are, unless some number or byte has no token: CheckpointError."""
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{file} of the checkpoint leaves out ids or gives one twice")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise CheckpointError(f"{file} of the checkpoint lacks tokens of single bytes")
    return ranks


def build(path: Path, *, split: str, nfc: bool) -> tokenizers.Tokenizer:
    """The tokenizer of a tiktoken file, without control tokens; raises as `read_ranks`."""
    return build_from_ranks(read_ranks(path), split=split, nfc=nfc)


def build_from_ranks(
    ranks: Mapping[bytes, int], *, split: str, nfc: bool = False, before: Sequence[str] = ()
) -> tokenizers.Tokenizer:
    """The tokenizer of tokens with their ranks, whose ids follow those of the control tokens `before`."""
    letters = {token: "".join(_LETTERS[byte] for byte in token) for token in ranks}
    merges = [(letters[left], letters[right]) for left, right in _merges(ranks)]
    vocab = {letters[token]: len(before) + rank for token, rank in ranks.items()}
    if twice := next((name for name in before if name in vocab), None):
        raise CheckpointError(f"{twice} is the name of a control token of the checkpoint, and text as well")
    vocab |= {name: index for index, name in enumerate(before)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    found = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        found += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return found


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary (Radford et al. 2019): itself where it prints."""
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printing)
    return {byte: chr(byte) for byte in printing} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_LETTERS = _byte_letters()
