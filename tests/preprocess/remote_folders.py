"""Folders shaped as the hub's repositories of models whose tokenizer is code of their own, with tiny vocabularies."""

from __future__ import annotations

import base64
import collections
import functools
import io
import itertools
import json
from pathlib import Path

import regex
import sentencepiece

from preprocess.tokenizer_adapters.recipes import QWEN_SPLIT
from tests.preprocess.tokenizer_zoo import CORPUS

# What a repository's code would do if anything ran it; tests look for the file that it leaves.
TRAP = (
    "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\nraise SystemExit('code of the model ran')\n"
)


@functools.cache
def sentencepiece_model(kind: str = "bpe", **options: object) -> bytes:
    """A trained sentencepiece model; options are the trainer's. Tuples of them are lists."""
    out = io.BytesIO()
    settings = {
        "vocab_size": 420 if options.get("byte_fallback") else 300, "hard_vocab_limit": False, "character_coverage": 1.0,
        "minloglevel": 2,
    } | options  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, model_type=kind,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
    )  # fmt: skip
    return out.getvalue()


def llama_like(**options: object) -> bytes:
    """As most of these models have it: byte pairs and byte fallback, nothing normalized."""
    defaults = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return sentencepiece_model("bpe", **(defaults | options))


@functools.cache
def ranks(num_tokens: int = 400) -> dict[bytes, int]:
    """Byte pairs of the corpus, the most frequent first, as tiktoken files hold them."""
    found = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in word.encode()] for word in regex.findall(QWEN_SPLIT, "\n".join(CORPUS))]
    while len(found) < num_tokens:
        counts = collections.Counter(pair for word in words for pair in itertools.pairwise(word))
        pair = counts.most_common(1)[0][0]
        found[pair[0] + pair[1]] = len(found)
        words = [_joined(word, pair) for word in words]
    return found


def tiktoken_file(num_tokens: int = 400) -> bytes:
    """The ranks as a file: base64 and rank, one token a line."""
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks(num_tokens).items())


def write(folder: Path, vocabulary: tuple[str, bytes], code: str, **files: dict) -> Path:
    """Writes a checkpoint's text files: `code` is "module.Class" of its auto_map; keyword arguments are JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    module, _, name = code.rpartition(".")
    (folder / f"{module}.py").write_text(TRAP)
    (folder / vocabulary[0]).write_bytes(vocabulary[1])
    settings = {"tokenizer_class": name, "auto_map": {"AutoTokenizer": [code, None]}}
    files["tokenizer_config"] = settings | files.get("tokenizer_config", {})
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


def added_token(name: str) -> dict:
    """An entry of added_tokens_decoder."""
    return {
        "content": name, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True,
    }  # fmt: skip


def _joined(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    result, i = [], 0
    while i < len(word):
        joins = tuple(word[i : i + 2]) == pair
        result.append(pair[0] + pair[1] if joins else word[i])
        i += 2 if joins else 1
    return result
