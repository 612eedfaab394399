"""Owns text <-> token ids: a checkpoint's tokenizer, in which text that people send never becomes a control token.

Two `tokenizers` objects serve one vocabulary. `backend` is the tokenizer as the checkpoint ships it. `guarded` is the
same, except that each control token answers only to an alias: a random word that nobody can guess. So user text goes
through `guarded` as it is, and the control tokens that our own template wrote are first renamed to their aliases:

    template's "<|im_end|>"  --disguise-->  "zz5f…zz"  --guarded-->  the control token's id
    user's     "<|im_end|>"  ------------------------  --guarded-->  plain text: "<", "|", "im", …

Merges, prefix spaces and normalization are those of one whole text, because nothing is cut into pieces.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import tokenizers

from forebay.errors import FailedPrecondition
from forebay.v1.errors_pb2 import ErrorReason

_BYTE_FALLBACK = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_PLACEHOLDER = re.compile(r"[<\[]/?\w*(?:im(?:g|age)|video|audio|vision)\w*[>\]]", re.IGNORECASE)


class TextTokenizer:
    """A tokenizer with what chat templates need of it. Threads may share one."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        named_tokens: dict[str, str],
        chat_template: str | None,
        end_tokens: tuple[str, ...] = (),
    ) -> None:
        """`end_tokens` end an answer, besides the eos_token of `named_tokens`."""
        backend.no_truncation()  # a length written into tokenizer.json would cut prompts in silence
        backend.no_padding()
        self.backend = backend
        self.named_tokens = named_tokens
        self.chat_template = chat_template
        self.end_tokens = end_tokens
        added = backend.get_added_tokens_decoder()
        self._controls = {i: token for i, token in added.items() if token.special or _looks_like_control(token.content)}
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._control_pattern = _any_of(token.content for token in self._controls.values())
        self._added_pattern = _any_of(token.content for token in added.values())
        self._aliases = {token.content: f"zz{secrets.token_hex(16)}zz" for token in self._controls.values()}
        self._normalizes_controls = backend.normalizer is not None and any(
            token.normalized for token in self._controls.values()
        )
        self._guard_lock = threading.Lock()
        self._guarded: tokenizers.Tokenizer | None = None

    @property
    def control_texts(self) -> tuple[str, ...]:
        """The names of the tokens that user text cannot become."""
        return tuple(self._aliases)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text in which control tokens are recognised: for what our own template wrote."""
        return _encode(self.backend, text, add_special_tokens)

    def encode_user_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text in which names of control tokens are plain text."""
        tokenizer = self.guarded if self.may_have_controls(text) else self.backend
        return _encode(tokenizer, text, add_special_tokens)

    def encode_parts(self, *texts: str) -> list[tokenizers.Encoding]:
        """Each user text by itself, for `join`: without the tokens that the tokenizer puts around and between texts."""
        tokenizer = self.guarded if any(map(self.may_have_controls, texts)) else self.backend
        return tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    def join(self, first: tokenizers.Encoding, second: tokenizers.Encoding | None = None) -> tokenizers.Encoding:
        """One text, or a pair of them, with what the tokenizer puts around and between, and the segment of each id."""
        return self.backend.post_process(first, second, add_special_tokens=True)

    def num_added_tokens(self, *, pair: bool) -> int:
        """How many ids `join` adds."""
        return self.backend.num_special_tokens_to_add(pair)

    def encode_disguised(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text whose own control tokens went through `disguise`; all other names of them are plain text."""
        return _encode(self.guarded, text, add_special_tokens)

    def disguise(self, text: str) -> str:
        """Renames each control token in the text to its alias."""
        return self._added_pattern.sub(lambda match: self._aliases.get(match[0], match[0]), text)

    def normalized(self, text: str) -> str:
        """The text as control tokens are looked up in it: most are looked up in the text as it is."""
        return self.backend.normalizer.normalize_str(text) if self._normalizes_controls else text

    def control_names(self, text: str) -> list[str]:
        """The names of control tokens in the text, in order."""
        names = [match[0] for match in self._added_pattern.finditer(text) if match[0] in self._aliases]
        if self._normalizes_controls:
            names += self._normalized_control_pattern.findall(self.normalized(text))
        return names

    def may_have_controls(self, text: str) -> bool:
        """Whether the backend could take a part of the text for a control token."""
        if self._control_pattern.search(text):
            return True
        return self._normalizes_controls and bool(self._normalized_control_pattern.search(self.normalized(text)))

    def control_spans(self, text: str) -> list[tuple[int, int]]:
        """Where in the text, as (start, end) of characters, the backend takes a part of it for a control token."""
        if not self.may_have_controls(text):
            return []
        encoding = self.backend.encode(text, add_special_tokens=False)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        spans = [span for token_id, span in pairs if token_id in self._controls]
        return [
            (start, end) for start, end in spans if self.may_have_controls(text[start:end])
        ]  # else it is unknown text

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of ids; ids that the tokenizer does not know give no text."""
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary writes it; empty for ids that the tokenizer does not know."""
        return [self.backend.id_to_token(token_id) or "" for token_id in token_ids]

    def max_text_bytes(self, max_tokens: int) -> int | None:
        """How long a text can be, in bytes of UTF-8, and still become at most `max_tokens` ids; None: any length may.

        Known only where each byte of a text ends up in some token: byte-level vocabularies and byte fallback, with no
        added token that swallows the white space around it.
        """
        if self._longest_token_bytes is None:
            return None
        shrink = 1 if self.backend.normalizer is None else 4  # NFC and its like join code points
        return max_tokens * self._longest_token_bytes * shrink

    @property
    def guarded(self) -> tokenizers.Tokenizer:
        """The tokenizer whose control tokens answer only to their aliases. Made when first needed: it costs a load."""
        with self._guard_lock:
            if self._guarded is None:
                renamed = _rename_tokens(json.loads(self.backend.to_str()), self._aliases)
                self._guarded = tokenizers.Tokenizer.from_str(json.dumps(renamed))
            return self._guarded

    @cached_property
    def _normalized_control_pattern(self) -> re.Pattern[str]:
        normalize = self.backend.normalizer.normalize_str
        return _any_of(normalize(token.content).strip(" ▁") for token in self._controls.values() if token.normalized)

    @cached_property
    def _longest_token_bytes(self) -> int | None:
        vocab = self.backend.get_vocab(with_added_tokens=True)
        byte_level = "ByteLevel" in str(self.backend.pre_tokenizer)
        if not byte_level and sum(map(bool, map(_BYTE_FALLBACK.fullmatch, vocab))) < 256:
            return None
        if any(t.lstrip or t.rstrip for t in self.backend.get_added_tokens_decoder().values() if not t.special):
            return None
        return max(len(token.encode()) for token in vocab)  # byte-level letters outgrow their byte: still a bound


def need_tokenizer(tokenizer: TextTokenizer | None) -> TextTokenizer:
    """The tokenizer, or FailedPrecondition that says what to send instead of text."""
    if tokenizer is None:
        raise FailedPrecondition(
            "the model comes without a tokenizer: send token ids instead of text", ErrorReason.ERROR_REASON_NO_TOKENIZER
        )
    return tokenizer


def _encode(tokenizer: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    # encode_batch_fast lets go of the interpreter lock and keeps no offsets; encode does neither.
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


def _looks_like_control(text: str) -> bool:
    # Some checkpoints forget to mark <|im_start|>, or the placeholders of media, as special; they rely on them all the same.
    return (len(text) > 4 and text.startswith("<|") and text.endswith("|>")) or bool(_PLACEHOLDER.fullmatch(text))


def _any_of(texts: Any) -> re.Pattern[str]:
    """Matches any of the texts, the longest first as `tokenizers` does."""
    longest_first = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _rename_tokens(data: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A tokenizer.json in which tokens carry other names, with the same ids and scores."""
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): token_id for token, token_id in model["vocab"].items()}
    else:  # Unigram: (token, score) in the order of ids
        model["vocab"] = [(names.get(token, token), score) for token, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):  # a merge that would spell a control token must not
        pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [p for p in pairs if not names.keys() & {p[0], p[1], p[0] + p[1]}]
    return data
