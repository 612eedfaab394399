"""Owns the text of a sequence as it grows token by token, up to the stop string that ends it.

`tokenizers` has a DecodeStream for this. It is not used: it keeps an unfinished character at the end to itself, and
raises where a run of byte tokens turns out not to be UTF-8, so that over random ids its pieces are not what `decode`
makes of the whole for 3 of 10 sequences of a byte-level vocabulary and 4 of 10 with byte fallback. Here, the pieces add
up to `decode` of all ids:

    ids    … [a] t t t | t ← new       A short window of ids is decoded each time, and what was not shown before is new.
    text   "a shown s" | "hown new"    The window starts with the sequence, later with a plain word that stands for all
                                       that came before, so that no decoder takes the next token for the first one.

Text is held back only while later tokens may change it: a last character whose bytes are not all there, and a run of
byte tokens (`<0x..>`), whose characters all become U+FFFD if any of its bytes is wrong. A run is held for at most
MAX_HELD_BYTES; only where one turns out wrong after that is the text another than `decode` gives, and a better one.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers

from frontend.stop_strings import stop_automaton

MAX_HELD_BYTES = 64
_MAX_WINDOW, _KEPT_IDS = 8, 4  # the bytes of a character are spread over at most 4 ids
_INVISIBLE, _PLAIN = -2, -1
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What a push adds: text that is certain, and how many of its ids belong to the sequence.

    `stop_string` is the one that ended the sequence; the id that completed it is the last that belongs to it.
    """

    text: str
    num_tokens: int
    stop_string: str | None = None


class SequenceText:
    """The text of one sequence. Without a tokenizer there is none, and there can be no stop strings.

    A stop string ends the sequence where it is first complete, whatever tokens it came in; of several that end at the
    same character the longest counts. As in vLLM, the token that completes it must come after the first `min_tokens`
    ones, which is also when stop tokens are first allowed.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer | None,
        *,
        stop: Sequence[str],
        skip_special_tokens: bool,
        include_stop_str_in_output: bool,
        min_tokens: int,
    ) -> None:
        assert tokenizer is not None or not stop
        self._stream = None if tokenizer is None else _TextStream(_vocabulary(tokenizer, skip_special_tokens))
        self._stops = stop_automaton(tuple(stop)) if stop else None
        self._includes_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._state = 0  # of the automaton
        self._held = ""  # what may be the beginning of a stop string
        self._ended = False

    def push(self, token_ids: Sequence[int], *, finished_by_stop_token: bool = False) -> TextDelta:
        """Adds ids; the last one gives no text if it is a stop token and stops are not part of the output."""
        if self._ended:
            return TextDelta("", 0)
        if self._stream is None:
            return TextDelta("", len(token_ids))
        last = len(token_ids) - 1 if finished_by_stop_token and not self._includes_stop else len(token_ids)
        parts = []
        for count, token_id in enumerate(token_ids[:last], 1):
            self._num_tokens += 1
            text = self._stream.push(token_id)
            if not text:
                continue
            if self._stops is not None:
                text, stop_string = self._cut(text)
                if stop_string is not None:
                    return TextDelta("".join([*parts, text]), count, stop_string)
            parts.append(text)
        return TextDelta(parts[0] if len(parts) == 1 else "".join(parts), len(token_ids))

    def finish(self) -> str:
        """The text that was held back, when no more ids come; cut like the rest if it completes a stop string."""
        if self._ended or self._stream is None:
            return ""
        text, stop_string = self._stream.finish(), None
        if self._stops is not None:
            text, stop_string = self._cut(text)
        self._ended = True
        return text if stop_string is not None else text + self._held

    def _cut(self, new: str) -> tuple[str, str | None]:
        """What can be shown now that `new` has come, and the stop string that is complete with it."""
        assert self._stops is not None
        text, counts = self._held + new, self._num_tokens > self._min_tokens
        state, step, match_lengths = self._state, self._stops.step, self._stops.match_lengths
        for end, char in enumerate(new, len(self._held) + 1):
            state = step(state, char)
            if counts and match_lengths[state]:
                self._ended = True
                start = end - match_lengths[state]
                return text[: end if self._includes_stop else start], text[start:end]
        self._state = state
        shown = len(text) - self._stops.open_lengths[state]
        self._held = text[shown:]
        return text[:shown], None


class _Vocabulary:
    """What the ids of a tokenizer are to a decoder: nothing, a byte (0 to 255), or plain text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, skip_special_tokens: bool) -> None:
        self.decode = functools.partial(tokenizer.decode, skip_special_tokens=skip_special_tokens)
        self._name_of = tokenizer.id_to_token
        added = tokenizer.get_added_tokens_decoder().values() if skip_special_tokens else ()
        self._skipped = {token.content for token in added if token.special}
        # What a decoder does is asked of it: its description says less, and there are many of them.
        decode = tokenizer.decoder.decode if tokenizer.decoder is not None else " ".join
        self.byte_level = decode(["ð"]) == _REPLACEMENT  # the first byte of four, in the byte-level alphabet
        self._has_byte_tokens = decode(["<0x41>"]) == "A"
        sample = ["▁a</w>", "<0xC3>", "<0xA9>", "b"]
        if decode([text for token in sample for text in ("", token, "")]) == decode(sample):
            self._skipped.add("")
        self._kinds: dict[int, int] = {}
        ids = range(tokenizer.get_vocab_size(with_added_tokens=True))
        self.word = next((i for i in ids if self.kind(i) == _PLAIN and self.decode([i]).isalnum()), None)

    def kind(self, token_id: int) -> int:
        """_INVISIBLE, _PLAIN, or the value of a byte token."""
        kind = self._kinds.get(token_id)
        if kind is None:
            kind = self._kinds[token_id] = self._find_kind(token_id)
        return kind

    def _find_kind(self, token_id: int) -> int:
        name = self._name_of(token_id)
        if name is None or name in self._skipped:
            return _INVISIBLE
        byte = _BYTE_TOKEN.fullmatch(name) if self._has_byte_tokens else None
        return int(byte[1], 16) if byte else _PLAIN


class _TextStream:
    """Turns ids into text, each piece as soon as nothing that follows can change it."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._window: list[int] = []
        self._num_shown = 0  # characters of the window's text
        self._run_length = 0  # byte tokens at the end
        self._run_is_wrong = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        kind = self._vocabulary.kind(token_id)
        if kind == _INVISIBLE:
            return ""
        if kind != _PLAIN:
            return self._push_byte(token_id, kind)
        if self._run_length:
            self._run_length, self._run_is_wrong = 0, False
            self._utf8.reset()
        self._window.append(token_id)
        text = self._vocabulary.decode(self._window)
        held = 1 if self._vocabulary.byte_level and text.endswith(_REPLACEMENT) else 0
        new = text[self._num_shown : len(text) - held]
        self._num_shown += len(new)
        # While nothing is shown, the next token may still be the first one with text, from which a space is stripped.
        if len(self._window) > _MAX_WINDOW and self._num_shown and self._vocabulary.word is not None:
            self._shorten(_KEPT_IDS, num_held=held)
        return new

    def finish(self) -> str:
        """The text that was held back."""
        return self._rest(self._window)

    def _push_byte(self, token_id: int, byte: int) -> str:
        if self._run_is_wrong:
            return _REPLACEMENT  # for each byte; the window need not know of more than the first
        self._window.append(token_id)
        self._run_length += 1
        try:
            self._utf8.decode(bytes((byte,)))
        except UnicodeDecodeError:
            self._run_is_wrong = True
            return self._rest(self._window)
        if self._run_length < MAX_HELD_BYTES or self._vocabulary.word is None:
            return ""
        num_unfinished = len(self._utf8.getstate()[0])
        new = self._rest(self._window[: len(self._window) - num_unfinished])
        self._shorten(num_unfinished, num_held=0)
        self._num_shown -= num_unfinished  # they became U+FFFD one by one, and are not shown
        self._run_length = num_unfinished
        return new

    def _rest(self, window: list[int]) -> str:
        new = self._vocabulary.decode(window)[self._num_shown :]
        self._num_shown += len(new)
        return new

    def _shorten(self, num_kept: int, *, num_held: int) -> None:
        """Forgets all but the last ids; the texts of both windows agree at their ends, where `num_held` is not shown."""
        self._window = [self._vocabulary.word, *self._window[len(self._window) - num_kept :]]
        self._num_shown = len(self._vocabulary.decode(self._window)) - num_held


@functools.lru_cache(maxsize=16)
def _vocabulary(tokenizer: tokenizers.Tokenizer, skip_special_tokens: bool) -> _Vocabulary:
    return _Vocabulary(tokenizer, skip_special_tokens)
