"""Owns what tests of a growing sequence share: tokenizers of every kind, ids of single bytes, and ways to push ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer

from frontend.detokenizer import SequenceText
from tests.preprocess.tokenizer_zoo import BUILDERS, tokenizer_of

KINDS = [builder.__name__ for builder in BUILDERS]
TOKENIZERS = {kind: tokenizer_of(kind) for kind in KINDS}


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """The ids of single bytes, for the two kinds that have them; empty for the others."""
    names = [f"<0x{byte:02X}>" for byte in data]
    if tokenizer.token_to_id(names[0]) is None:
        letters = _byte_level_letters()
        names = [letters[byte] for byte in data]
    ids = [tokenizer.token_to_id(name) for name in names]
    return [] if None in ids else ids


def _byte_level_letters() -> dict[int, str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def text_of(tokenizer: Tokenizer | None, **options: Any) -> SequenceText:
    defaults = {"stop": (), "skip_special_tokens": True, "include_stop_str_in_output": False, "min_tokens": 0}
    return SequenceText(tokenizer, **(defaults | options))


def pushed(text: SequenceText, pushes: Iterable[Sequence[int]]) -> str:
    return "".join([*(text.push(ids).text for ids in pushes), text.finish()])


def split(ids: list[int], cuts: list[int]) -> list[list[int]]:
    """The ids in pushes of these lengths, over and over."""
    pushes, start = [], 0
    while start < len(ids):
        length = cuts[len(pushes) % len(cuts)]
        pushes.append(ids[start : start + length])
        start += length
    return pushes
