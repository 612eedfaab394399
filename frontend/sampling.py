"""Owns how a request's sampling parameters become the executor's: defaults filled in, bounds checked, texts turned to ids."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Protocol

from forebay.errors import FailedPrecondition, InvalidRequest
from forebay.executor.v1 import executor_pb2
from forebay.v1 import sampling_pb2
from forebay.v1.errors_pb2 import ErrorReason
from frontend.tokenization import check_token_ids


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `least` to `most`, both included unless `above_least`. NaN is in no range."""

    least: float
    most: float = math.inf
    above_least: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.least < value if self.above_least else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        if self.most == math.inf:
            return f"at least {self.least:,}"
        return f"in {'(' if self.above_least else '['}{self.least:,}, {self.most:,}]"


# The bounds that sampling.proto documents. The executor's own, in gpu_executor/submission.py, only protect its engine.
RANGES = {
    "max_tokens": Range(1),
    "n": Range(1, 128),
    "temperature": Range(0, 100),
    "top_p": Range(0, 1, above_least=True),
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "repetition_penalty": Range(0, 10, above_least=True),
    "logprobs": Range(0, 20),
    "prompt_logprobs": Range(0, 20),
    "truncate_prompt_tokens": Range(1),
}
BIAS_RANGE = Range(-100, 100)
MAX_ENTRIES = {
    "logit_bias": 300,
    "bad_words": 64,
    "allowed_token_ids": 1024,
    "stop": 16,
    "stop_token_ids": 64,
    "logprob_token_ids": 128,
}
MAX_TEXT_BYTES = 256
GREEDY_BELOW = 1e-5  # as vLLM: a logit divided by less may be infinite, and the likeliest token lost among its equals

_TEXT_FIELDS = ("stop", "bad_words")
_ID_FIELDS = ("allowed_token_ids", "stop_token_ids", "logprob_token_ids")


class WordTokenizer(Protocol):
    """What is needed of a preprocessor; see preprocess.preprocessor.Preprocessor."""

    @property
    def has_tokenizer(self) -> bool: ...

    def bad_word_ids(self, text: str) -> list[list[int]]: ...


@dataclass(frozen=True, slots=True)
class ResolvedSampling:
    """What a request asks for: `executor` is for the GPU tier, the rest for the detokenizer."""

    executor: executor_pb2.SamplingParams
    stop: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    n: int


def resolve_sampling(
    params: sampling_pb2.SamplingParams,
    *,
    defaults: sampling_pb2.SamplingParams,
    prompt_len: int,
    max_model_len: int,
    vocab_size: int,
    preprocessor: WordTokenizer,
) -> ResolvedSampling:
    """The parameters of a request whose prompt has `prompt_len` ids, for a model that takes `max_model_len` in all.

    Raises InvalidRequest (SAMPLING_OUT_OF_RANGE, TOKEN_OUT_OF_RANGE, TOO_LONG, INVALID_FIELD), and FailedPrecondition
    (NO_TOKENIZER) for texts where there is no tokenizer; the error names the field.
    """
    params = _with_defaults(params, defaults)
    _check_numbers(params)
    _check_lists(params, vocab_size)
    _check_texts(params, preprocessor)
    if params.logprob_token_ids and not params.HasField("logprobs"):
        raise _invalid("logprob_token_ids", "needs logprobs, which is absent")
    executor = executor_pb2.SamplingParams(
        max_tokens=_max_tokens(params, prompt_len, max_model_len),
        min_tokens=params.min_tokens,
        n=params.n if params.HasField("n") else 1,
        temperature=_temperature(params),
        top_k=params.top_k,
        top_p=params.top_p if params.HasField("top_p") else 1.0,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty if params.HasField("repetition_penalty") else 1.0,
        logit_bias_ids=[entry.token_id for entry in params.logit_bias],
        logit_bias_values=[entry.bias for entry in params.logit_bias],
        bad_words=_bad_words(params, vocab_size, preprocessor),
        allowed_token_ids=params.allowed_token_ids,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        seed=params.seed if params.HasField("seed") else secrets.randbits(64),
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        prompt_logprobs=params.prompt_logprobs if params.HasField("prompt_logprobs") else None,
        logprob_token_ids=params.logprob_token_ids,
    )
    return ResolvedSampling(
        executor=executor,
        stop=tuple(params.stop),
        include_stop=params.include_stop_str_in_output,
        skip_special_tokens=params.skip_special_tokens if params.HasField("skip_special_tokens") else True,
        n=executor.n,
    )


def _with_defaults(
    params: sampling_pb2.SamplingParams, defaults: sampling_pb2.SamplingParams
) -> sampling_pb2.SamplingParams:
    merged = sampling_pb2.SamplingParams()
    merged.CopyFrom(defaults)
    for field, _ in params.ListFields():  # a list replaces the default's, where merging alone would add to it
        merged.ClearField(field.name)
    merged.MergeFrom(params)
    return merged


def _check_numbers(params: sampling_pb2.SamplingParams) -> None:
    for name, allowed in RANGES.items():
        if params.HasField(name) and getattr(params, name) not in allowed:
            raise _out_of_range(name, f"is {_spelled(getattr(params, name))}; it must be {allowed}")


def _check_lists(params: sampling_pb2.SamplingParams, vocab_size: int) -> None:
    for name, most in MAX_ENTRIES.items():
        if len(getattr(params, name)) > most:
            raise _out_of_range(name, f"has {len(getattr(params, name)):,} entries; at most {most:,} are taken")
    for name in _ID_FIELDS:
        check_token_ids(getattr(params, name), vocab_size, f"sampling.{name}")
    check_token_ids([entry.token_id for entry in params.logit_bias], vocab_size, "sampling.logit_bias")
    seen: set[int] = set()
    for index, entry in enumerate(params.logit_bias):
        if entry.bias not in BIAS_RANGE:
            raise _out_of_range(f"logit_bias[{index}].bias", f"is {_spelled(entry.bias)}; it must be {BIAS_RANGE}")
        if entry.token_id in seen:
            raise _invalid(f"logit_bias[{index}].token_id", f"is {entry.token_id}, which has an entry already")
        seen.add(entry.token_id)


def _check_texts(params: sampling_pb2.SamplingParams, preprocessor: WordTokenizer) -> None:
    for name in _TEXT_FIELDS:
        if getattr(params, name) and not preprocessor.has_tokenizer:
            problem = "needs a tokenizer, and the model comes without one"
            raise FailedPrecondition(
                f"{name} {problem}", ErrorReason.ERROR_REASON_NO_TOKENIZER, fields=((f"sampling.{name}", problem),)
            )
        for index, text in enumerate(getattr(params, name)):
            if not text:
                raise _invalid(f"{name}[{index}]", "is empty")
            if (num_bytes := len(text.encode())) > MAX_TEXT_BYTES:
                raise _out_of_range(
                    f"{name}[{index}]", f"has {num_bytes:,} bytes; at most {MAX_TEXT_BYTES:,} are taken"
                )


def _bad_words(
    params: sampling_pb2.SamplingParams, vocab_size: int, preprocessor: WordTokenizer
) -> list[executor_pb2.TokenSequence]:
    """The token sequences that spell a bad word, each once."""
    found: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(params.bad_words):
        sequences = preprocessor.bad_word_ids(word)
        if not sequences:
            raise _invalid(f"bad_words[{index}]", "has no tokens")
        for token_ids in sequences:
            check_token_ids(token_ids, vocab_size, f"sampling.bad_words[{index}]")
            found[tuple(token_ids)] = None
    return [executor_pb2.TokenSequence(token_ids=token_ids) for token_ids in found]


def _max_tokens(params: sampling_pb2.SamplingParams, prompt_len: int, max_model_len: int) -> int:
    """How many tokens to generate at most, checked against the context and against min_tokens."""
    room = max_model_len - prompt_len
    if room < 1:
        problem = f"has {prompt_len:,} tokens and leaves no room; the model takes {max_model_len:,}, prompt and output"
        raise InvalidRequest(f"the prompt {problem}", ErrorReason.ERROR_REASON_TOO_LONG, fields=(("prompt", problem),))
    max_tokens = params.max_tokens if params.HasField("max_tokens") else room
    if max_tokens > room:
        problem = (
            f"is {max_tokens:,}, which with the prompt's {prompt_len:,} tokens is {prompt_len + max_tokens:,}; "
            f"the model takes {max_model_len:,}"
        )
        raise _error("max_tokens", problem, ErrorReason.ERROR_REASON_TOO_LONG)
    if params.min_tokens > max_tokens:
        limit = f"max_tokens, {max_tokens:,}" if params.HasField("max_tokens") else f"the context's room, {room:,}"
        raise _out_of_range("min_tokens", f"is {params.min_tokens:,}; it must be at most {limit}")
    return max_tokens


def _temperature(params: sampling_pb2.SamplingParams) -> float:
    temperature = params.temperature if params.HasField("temperature") else 1.0
    return temperature if temperature >= GREEDY_BELOW else 0.0


def _spelled(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.7g}"  # 7: what a float32 has for sure


def _out_of_range(name: str, problem: str) -> InvalidRequest:
    return _error(name, problem, ErrorReason.ERROR_REASON_SAMPLING_OUT_OF_RANGE)


def _invalid(name: str, problem: str) -> InvalidRequest:
    return _error(name, problem, ErrorReason.ERROR_REASON_INVALID_FIELD)


def _error(name: str, problem: str, reason: int) -> InvalidRequest:
    return InvalidRequest(f"{name} {problem}", reason, fields=((f"sampling.{name}", problem),))
