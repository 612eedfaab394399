"""Owns how inputs to pool become requests and a frontend's packed numbers become lists. It needs no numpy."""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from forebay.client_requests import PromptInput, to_prompts
from forebay.errors import InvalidRequest
from forebay.outputs import ClassificationOutput, EmbeddingOutput, PoolingOutput, PoolingResponse, ScoringOutput
from forebay.pooling_params import PoolingParams
from forebay.v1 import pooling_pb2 as api

FORMATS = {
    "float32": api.EMBEDDING_FORMAT_FLOAT32,
    "float16": api.EMBEDDING_FORMAT_FLOAT16,
    "int8": api.EMBEDDING_FORMAT_INT8,
    "binary": api.EMBEDDING_FORMAT_BINARY,
}

Request = TypeVar("Request", api.EmbedRequest, api.ClassifyRequest, api.ScoreRequest, api.RewardRequest)


def embed_request(
    inputs: PromptInput | Sequence[PromptInput], params: PoolingParams | None, *, format: str, **fields: Any
) -> api.EmbedRequest:
    """A request to embed; raises InvalidRequest for what its fields cannot hold."""
    if format not in FORMATS:
        problem = f"must be one of {', '.join(FORMATS)}"
        raise InvalidRequest(f"format is {repr(format)[:50]}; it {problem}", fields=(("format", problem),))
    params = params or PoolingParams()
    return _request(
        api.EmbedRequest,
        params,
        inputs=to_prompts(inputs),
        format=FORMATS[format],
        dimensions=params.dimensions,
        normalize=params.normalize,
        **fields,
    )


def classify_request(
    inputs: PromptInput | Sequence[PromptInput], params: PoolingParams | None, **fields: Any
) -> api.ClassifyRequest:
    """A request to classify."""
    params = params or PoolingParams()
    return _request(api.ClassifyRequest, params, inputs=to_prompts(inputs), activation=params.activation, **fields)


def score_request(
    queries: PromptInput | Sequence[PromptInput],
    documents: PromptInput | Sequence[PromptInput] | None,
    params: PoolingParams | None,
    **fields: Any,
) -> api.ScoreRequest:
    """A request to score; without documents, each of `queries` is a whole pair."""
    params, first = params or PoolingParams(), to_prompts(queries)
    pairs = {"documents": first} if documents is None else {"queries": first, "documents": to_prompts(documents)}
    return _request(api.ScoreRequest, params, activation=params.activation, **pairs, **fields)


def reward_request(
    inputs: PromptInput | Sequence[PromptInput], params: PoolingParams | None, **fields: Any
) -> api.RewardRequest:
    """A request to reward."""
    params = params or PoolingParams()
    return _request(api.RewardRequest, params, inputs=to_prompts(inputs), activation=params.activation, **fields)


def read_embeddings(response: api.EmbedResponse) -> PoolingResponse[EmbeddingOutput]:
    """The vectors as numbers: INT8 multiplied by its scales, BINARY as 1 and -1."""
    size = response.dimensions
    if response.format == api.EMBEDDING_FORMAT_BINARY:
        row_bytes = (size + 7) // 8
        rows = [_signs(row, size) for row in _cut(response.embeddings, row_bytes)]
    elif response.format == api.EMBEDDING_FORMAT_INT8:
        packed = _cut(response.embeddings, size)
        rows = [
            [number * scale for number in struct.unpack(f"{size}b", row)]
            for row, scale in zip(packed, response.scales, strict=True)
        ]
    elif response.format == api.EMBEDDING_FORMAT_FLOAT16:
        rows = [list(struct.unpack(f"<{size}e", row)) for row in _cut(response.embeddings, 2 * size)]
    else:
        rows = _rows(response.embeddings, size)
    return _response(response, [EmbeddingOutput(row) for row in rows])


def read_classes(response: api.ClassifyResponse) -> PoolingResponse[ClassificationOutput]:
    """The classes' probabilities."""
    rows = _rows(response.probabilities, response.num_classes)
    return _response(response, [ClassificationOutput(row, list(response.labels)) for row in rows])


def read_scores(response: api.ScoreResponse) -> PoolingResponse[ScoringOutput]:
    """The scores."""
    return _response(response, [ScoringOutput(score) for score in response.scores])


def read_rewards(response: api.RewardResponse) -> PoolingResponse[PoolingOutput]:
    """The rewards: for each input its rows, lists of numbers."""
    return _response(response, [PoolingOutput(_rows(table.values, table.num_columns)) for table in response.tables])


def _request(kind: type[Request], params: PoolingParams, **fields: Any) -> Request:
    try:
        return kind(truncate_prompt_tokens=params.max_tokens, **fields)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"a field of the request cannot be sent: {error}") from None


def _response(response: Any, outputs: list[Any]) -> PoolingResponse[Any]:
    usage = response.usage
    return PoolingResponse(response.request_id, outputs, usage.prompt_tokens, usage.cached_prompt_tokens)


def _rows(data: bytes, num_columns: int) -> list[list[float]]:
    """Little-endian IEEE 754 single precision as rows of numbers."""
    numbers = array.array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return [numbers[start : start + num_columns].tolist() for start in range(0, len(numbers), num_columns or 1)]


def _cut(data: bytes, row_bytes: int) -> list[bytes]:
    return [data[start : start + row_bytes] for start in range(0, len(data), row_bytes or 1)]


def _signs(row: bytes, size: int) -> list[float]:
    return [1.0 if row[bit // 8] >> (7 - bit % 8) & 1 else -1.0 for bit in range(size)]
