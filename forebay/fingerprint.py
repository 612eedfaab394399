"""Owns what a frontend and an executor compare before they work together: digests of a model folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

PROCESSOR_VERSION = 1  # goes up whenever the same media becomes other tensors

# Files that decide which ids a text becomes, in the order in which they are hashed.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
    "qwen.tiktoken", "cl100k_base.tiktoken", "tekken.json",
)  # fmt: skip


def model_digest(config: dict[str, Any]) -> str:
    """Hexadecimal SHA-256 over a config.json as data: key order and white space do not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """Hexadecimal SHA-256 over the tokenizer's files, each with its name and length; empty if there are none."""
    digest, found = hashlib.sha256(), False
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            data, found = path.read_bytes(), True
            digest.update(f"{name}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest() if found else ""
