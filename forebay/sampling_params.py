"""Owns SamplingParams: how tokens are chosen and when to stop, in vLLM's words."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from forebay.errors import InvalidRequest
from forebay.v1 import sampling_pb2
from forebay.v1.errors_pb2 import ErrorReason


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop; names and meanings are vLLM's.

    None takes the default of the model's generation_config.json, else the one in the comment. That is what vLLM's server
    does with what a request leaves out; so a checkpoint's own temperature or top_p holds here too unless it is set.
    Ranges are the server's to check: see SamplingParams in protos/forebay/v1/sampling.proto.
    """

    n: int = 1
    temperature: float | None = None  # 1; 0 takes the likeliest token
    top_k: int | None = None  # off; 0 and -1 turn it off
    top_p: float | None = None  # 1
    min_p: float | None = None  # 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None  # 1
    max_tokens: int | None = None  # as many as the context has room for; vLLM's own default, 16, cuts most answers
    min_tokens: int = 0
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: Sequence[str] | None = ()
    allowed_token_ids: Sequence[int] | None = ()
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None  # a fresh one, which the output tells
    logprobs: int | None = None  # none; 0 gives those of the chosen tokens alone
    prompt_logprobs: int | None = None  # none
    logprob_token_ids: Sequence[int] | None = ()
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None  # a prompt that is too long is refused

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, _tuple(name, getattr(self, name)))

    def to_proto(self) -> sampling_pb2.SamplingParams:
        """The message that travels; what is None is absent. Raises InvalidRequest for what no field can hold."""
        proto = sampling_pb2.SamplingParams()
        for name, read in _SCALARS.items():
            value = getattr(self, name)
            if value is not None:
                setattr(proto, name, read(name, value))
        for name, read in _LISTS.items():
            getattr(proto, name).extend(read(name, value) for value in getattr(self, name))
        for token_id, bias in (self.logit_bias or {}).items():
            proto.logit_bias.add(
                token_id=_integer("logit_bias", token_id, _UINT32), bias=_read_float("logit_bias", bias)
            )
        return proto


def _tuple(name: str, values: Any) -> tuple[Any, ...]:
    if values is None or isinstance(values, str):
        return () if values is None else (values,)
    if not isinstance(values, Iterable):
        raise _wrong(name, values, "must be a list")
    return tuple(values)


_UINT32, _UINT64 = 2**32 - 1, 2**64 - 1


def _integer(name: str, value: Any, most: int) -> int:
    try:
        number = operator.index(value)  # numpy's integers too
    except TypeError:
        raise _wrong(name, value, "must be an integer") from None
    if not 0 <= number <= most:
        raise _wrong(name, value, "must not be negative" if number < 0 else f"must be at most {most}")
    return number


def _read_uint32(name: str, value: Any) -> int:
    return _integer(name, value, _UINT32)


def _read_top_k(name: str, value: Any) -> int:
    return 0 if value == -1 else _integer(name, value, _UINT32)


def _read_seed(name: str, value: Any) -> int:
    return _integer(name, value, _UINT64)


def _read_float(name: str, value: Any) -> float:
    if isinstance(value, (str, bytes)):
        raise _wrong(name, value, "must be a number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _wrong(name, value, "must be a number") from None


def _read_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "must be true or false")
    return value


def _read_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "must be text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _wrong(name, value, "is not valid Unicode") from None
    return value


def _wrong(name: str, value: Any, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is {repr(value)[:100]}; it {problem}",
        ErrorReason.ERROR_REASON_SAMPLING_OUT_OF_RANGE,
        fields=((f"sampling.{name}", problem),),
    )


_Read = Callable[[str, Any], Any]


def _each(read: _Read, names: Iterable[str]) -> dict[str, _Read]:
    return dict.fromkeys(names, read)


_SCALARS: dict[str, _Read] = {
    **_each(_read_uint32, ("n", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "truncate_prompt_tokens")),
    **_each(_read_float, (
        "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    )),
    **_each(_read_bool, ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens")),
    "top_k": _read_top_k,
    "seed": _read_seed,
}  # fmt: skip

_LISTS: dict[str, _Read] = {
    **_each(_read_text, ("stop", "bad_words")),
    **_each(_read_uint32, ("stop_token_ids", "allowed_token_ids", "logprob_token_ids")),
}
