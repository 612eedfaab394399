"""Owns stand-ins for the text side: a preprocessor, a detokenizer, a sampling resolver, and a sink that remembers."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from forebay.errors import FailedPrecondition, ForebayError, InvalidRequest
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import prompt_pb2, sampling_pb2
from forebay.v1.errors_pb2 import ErrorReason


def text_of(token_ids: Sequence[int]) -> str:
    """The text of tokens: one letter each."""
    return "".join(chr(97 + token_id % 26) for token_id in token_ids)


class FakePreprocessor:
    """A character is a token. While `gate` is not set, threads that encode wait for it."""

    has_tokenizer = True
    has_chat_template = False
    tokenizer_vocab_size = 128
    eos_token_ids = (2,)
    class_labels = ()
    default_sampling = sampling_pb2.SamplingParams(temperature=0.5)
    tokenizer = object()

    def __init__(self) -> None:
        self.num_encoded = 0
        self.last_limit: int | None = None
        self.gate = threading.Event()
        self.gate.set()

    def encode(
        self, prompt: prompt_pb2.Prompt, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        self.num_encoded += 1
        self.last_limit = max_tokens
        assert self.gate.wait(10), "the test never opened the gate"
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

    def decoder_prompt(self, prompt: prompt_pb2.Prompt) -> list[int] | None:
        return None

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
                if self._num > self._min_tokens and (at := self._text.find(stop, max(0, self._sent - len(stop)))) >= 0:
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


class RecordingSink:
    """A TokenSink that remembers what it got. `stops_at` ends a sequence at so many tokens, as a stop string would."""

    def __init__(self, num_sequences: int = 1, stops_at: dict[int, int] | None = None) -> None:
        self.token_ids: list[list[int]] = [[] for _ in range(num_sequences)]
        self.logprobs: list[list[wire.TokenLogprobs]] = [[] for _ in range(num_sequences)]
        self.num_ends = [0] * num_sequences
        self.finishes: list[wire.SequenceFinish | None] = [None] * num_sequences
        self.prompt_logprobs: list[list[wire.PromptLogprobs]] = []
        self.errors: list[ForebayError] = []
        self.num_flushes = 0
        self._stops_at = stops_at or {}

    def push(self, sequence_index, token_ids, logprobs, finish) -> bool:
        assert not self.num_ends[sequence_index], "something came after the end"
        self.token_ids[sequence_index] += token_ids
        self.logprobs[sequence_index] += logprobs or []
        stopped = len(self.token_ids[sequence_index]) >= self._stops_at.get(sequence_index, math.inf)
        self.num_ends[sequence_index] += stopped or finish is not None
        self.finishes[sequence_index] = finish
        return stopped

    def flush(self) -> None:
        self.num_flushes += 1

    def prompt_logprobs_done(self, parts) -> None:
        self.prompt_logprobs.append(parts)

    def fail(self, error: ForebayError) -> None:
        self.errors.append(error)
