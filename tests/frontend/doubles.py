"""Owns stand-ins for the text side: a preprocessor, a detokenizer and a sampling resolver that need no tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forebay.errors import FailedPrecondition, InvalidRequest
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import prompt_pb2, sampling_pb2
from forebay.v1.errors_pb2 import ErrorReason


def text_of(token_ids: Sequence[int]) -> str:
    """The text of tokens: one letter each."""
    return "".join(chr(97 + token_id % 26) for token_id in token_ids)


class FakePreprocessor:
    """A character is a token."""

    has_tokenizer = True
    has_chat_template = False
    tokenizer_vocab_size = 128
    eos_token_ids = (2,)
    default_sampling = sampling_pb2.SamplingParams(temperature=0.5)
    tokenizer = object()

    def __init__(self) -> None:
        self.num_encoded = 0

    def encode(self, prompt: prompt_pb2.Prompt, *, add_special_tokens: bool = True) -> list[int]:
        self.num_encoded += 1
        kind = prompt.WhichOneof("kind")
        if kind == "text":
            token_ids = [ord(c) % 128 for c in prompt.text]
        elif kind == "token_ids":
            token_ids = list(prompt.token_ids.ids)
        else:
            token_ids = []
        if not token_ids:
            raise InvalidRequest("the prompt is empty", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
        return token_ids

    def render_chat(self, chat: prompt_pb2.Chat) -> tuple[str, list[int]]:
        raise FailedPrecondition("no chat template", ErrorReason.ERROR_REASON_CHAT_TEMPLATE)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return text_of(token_ids)

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        return [text_of([token_id]) for token_id in token_ids]


@dataclass
class TextDelta:
    text: str
    num_tokens: int
    stop_string: str | None = None


class FakeText:
    """Letters as they come, except that what could be the beginning of a stop string is held back."""

    def __init__(self, tokenizer, *, stop, skip_special_tokens, include_stop_str_in_output, min_tokens) -> None:
        self._stop, self._include, self._min_tokens = tuple(stop), include_stop_str_in_output, min_tokens
        self._text, self._sent, self._num = "", 0, 0

    def push(self, token_ids: Sequence[int], *, finished_by_stop_token: bool = False) -> TextDelta:
        kept = token_ids[:-1] if finished_by_stop_token else token_ids
        for count, token_id in enumerate(kept, 1):
            self._text += text_of([token_id])
            self._num += 1
            for stop in self._stop:
                if self._num >= self._min_tokens and (at := self._text.find(stop, max(0, self._sent - len(stop)))) >= 0:
                    end = at + len(stop) if self._include else at
                    return TextDelta(self._text[self._sent : end], count, stop)
        held = max((n for s in self._stop for n in range(1, len(s)) if self._text.endswith(s[:n])), default=0)
        end = max(self._sent, len(self._text) - held)
        text, self._sent = self._text[self._sent : end], end
        return TextDelta(text, len(token_ids))

    def finish(self) -> str:
        text, self._sent = self._text[self._sent :], len(self._text)
        return text


@dataclass
class Resolved:
    executor: wire.SamplingParams
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    n: int


def fake_resolve_sampling(params, *, defaults, prompt_len, max_model_len, vocab_size, preprocessor) -> Resolved:
    """The few fields that these tests use."""
    if math.isnan(params.temperature):
        raise InvalidRequest("temperature is NaN", ErrorReason.ERROR_REASON_SAMPLING_OUT_OF_RANGE)
    max_tokens = params.max_tokens or max_model_len - prompt_len
    if prompt_len + max_tokens > max_model_len:
        raise InvalidRequest("too long", ErrorReason.ERROR_REASON_TOO_LONG)
    executor = wire.SamplingParams(
        max_tokens=max_tokens,
        min_tokens=params.min_tokens,
        n=params.n or 1,
        seed=params.seed if params.HasField("seed") else 42,
        stop_token_ids=params.stop_token_ids,
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        prompt_logprobs=params.prompt_logprobs if params.HasField("prompt_logprobs") else None,
    )
    return Resolved(executor, tuple(params.stop), params.include_stop_str_in_output, True, executor.n)
