"""Owns PoolingParams: what becomes of the hidden states of inputs, in vLLM's words."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from forebay.errors import InvalidRequest

MAX_UINT32 = 2**32 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """What becomes of the hidden states of inputs; None takes the default in the comment."""

    dimensions: int | None = None  # of an embedding; all
    normalize: bool | None = None  # an embedding, to length 1; as the checkpoint says
    activation: bool | None = None  # such as softmax; on, and off for rewards
    truncate_prompt_tokens: int | None = None  # what is too long is refused; -1 cuts it to what the model takes

    def __post_init__(self) -> None:
        for name in ("dimensions", "truncate_prompt_tokens"):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        for name in ("normalize", "activation"):
            if not isinstance(getattr(self, name), bool | None):
                raise _wrong(name, getattr(self, name), "must be true or false")

    @property
    def max_tokens(self) -> int | None:
        """truncate_prompt_tokens as messages carry it: servers cut to what the model takes anyway."""
        return MAX_UINT32 if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens


def _integer(name: str, value: Any) -> int | None:
    if value is None or (value == -1 and name == "truncate_prompt_tokens"):
        return value
    try:
        number = operator.index(value)  # numpy's integers too
    except TypeError:
        raise _wrong(name, value, "must be an integer") from None
    if not 1 <= number <= MAX_UINT32:
        raise _wrong(name, value, "must be at least 1" if number < 1 else f"must be at most {MAX_UINT32}")
    return number


def _wrong(name: str, value: Any, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{name} is {repr(value)[:100]}; it {problem}", fields=((name, problem),))
