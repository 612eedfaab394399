"""Owns what models give, online and offline, in the shape that vLLM users know."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar


@dataclasses.dataclass(frozen=True, slots=True)
class Logprob:
    """A token's place in the model's own distribution, before temperature, penalties and filters."""

    logprob: float  # natural logarithm
    rank: int | None = None  # 1 for the likeliest; None for a token that was asked for by id and is not among the top
    decoded_token: str | None = None  # None where there is no tokenizer: on the client's side


@dataclasses.dataclass(slots=True)
class CompletionOutput:
    """One finished sequence."""

    index: int  # which of the n sequences, from 0
    text: str
    token_ids: list[int]  # a stop token included
    cumulative_logprob: float | None = None  # of token_ids, where logprobs were asked for
    logprobs: list[dict[int, Logprob]] | None = None  # by position, then by token id
    finish_reason: str | None = None  # "stop" or "length"
    stop_reason: int | str | None = None  # the stop string, or id of stop_token_ids; None for the model's own end


@dataclasses.dataclass(slots=True)
class RequestOutput:
    """What became of one prompt."""

    request_id: str
    prompt: str | None  # None unless the prompt was given as text
    prompt_token_ids: list[int] | None  # of the decoder, if there is an encoder; None where only the server knows them
    outputs: list[CompletionOutput]  # by index
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # the first token has none
    encoder_prompt_token_ids: list[int] | None = None  # what the encoder read, offline and of models that have one
    finished: bool = True
    num_prompt_tokens: int = 0  # those of the encoder counted in
    num_cached_tokens: int = 0  # of the prompt, that the prefix cache held
    seed: int = 0  # what makes the random choices repeatable


@dataclasses.dataclass(frozen=True, slots=True)
class TextDelta:
    """What is new of one sequence. The texts and ids of its deltas, one after the other, are the sequence."""

    index: int  # which of the n sequences, from 0
    text: str  # empty while a character or a possible stop string is incomplete
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = None  # by position in token_ids, then by token id
    finish_reason: str | None = None  # None while the sequence goes on
    stop_reason: int | str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation as the model's chat template writes it."""

    text: str
    token_ids: list[int]


class LogprobEntry(Protocol):
    """What an engine or a server says of one position: the token that stands there, and then the likeliest and others."""

    logprob: float
    rank: int
    top_ids: Sequence[int]
    top_logprobs: Sequence[float]


def logprobs_by_id(
    token_id: int, entry: LogprobEntry, num_top: int, decode: Callable[[int], str | None] = lambda token_id: None
) -> dict[int, Logprob]:
    """By token id: the token that stands here, the `num_top` likeliest, best first, and those asked for by id."""
    found = {token_id: Logprob(entry.logprob, entry.rank, decode(token_id))}
    for rank, (other, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1):
        if other not in found:
            found[other] = Logprob(logprob, rank if rank <= num_top else None, decode(other))
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    """A text as a vector."""

    embedding: list[float]


@dataclasses.dataclass(frozen=True, slots=True)
class ClassificationOutput:
    """How likely each class is."""

    probs: list[float]
    labels: list[str] = dataclasses.field(default_factory=list)  # the classes' names; empty where there are none


@dataclasses.dataclass(frozen=True, slots=True)
class ScoringOutput:
    """How well a document answers a query."""

    score: float  # higher for a better match


@dataclasses.dataclass(frozen=True, slots=True)
class PoolingOutput:
    """What a model made of hidden states, whatever that is."""

    # Offline a torch.Tensor as in vLLM: (columns,), or (rows, columns) with a row per token or step. Of a server, the rows.
    data: Any


Pooled = TypeVar("Pooled", EmbeddingOutput, ClassificationOutput, ScoringOutput, PoolingOutput)


@dataclasses.dataclass(slots=True)
class PoolingRequestOutput(Generic[Pooled]):
    """What became of one input, offline."""

    request_id: str
    outputs: Pooled
    prompt_token_ids: list[int]  # of a score by embeddings: the query's, then the document's
    finished: bool = True
    num_cached_tokens: int = 0  # of the prompt, that the prefix cache held


@dataclasses.dataclass(slots=True)
class PoolingResponse(Generic[Pooled]):
    """What a server made of the inputs of one call."""

    request_id: str
    outputs: list[Pooled]  # in the inputs' order
    num_prompt_tokens: int = 0  # over all inputs
    num_cached_tokens: int = 0
