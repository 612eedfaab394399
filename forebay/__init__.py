"""What users of Forebay import: clients, offline inference, and what they take and give. Nothing is loaded before its use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forebay.aio_client import AsyncClient, AsyncTextStream
    from forebay.client import Client, TextStream, chat_prompt
    from forebay.errors import ForebayError
    from forebay.llm import LLM
    from forebay.outputs import (
        ClassificationOutput,
        CompletionOutput,
        EmbeddingOutput,
        Logprob,
        PoolingOutput,
        PoolingRequestOutput,
        PoolingResponse,
        RenderedChat,
        RequestOutput,
        ScoringOutput,
        TextDelta,
    )
    from forebay.pooling_params import PoolingParams
    from forebay.sampling_params import SamplingParams

_MODULES = {
    "LLM": "forebay.llm",
    "AsyncClient": "forebay.aio_client",
    "AsyncTextStream": "forebay.aio_client",
    "Client": "forebay.client",
    "ClassificationOutput": "forebay.outputs",
    "CompletionOutput": "forebay.outputs",
    "EmbeddingOutput": "forebay.outputs",
    "ForebayError": "forebay.errors",
    "Logprob": "forebay.outputs",
    "PoolingOutput": "forebay.outputs",
    "PoolingParams": "forebay.pooling_params",
    "PoolingRequestOutput": "forebay.outputs",
    "PoolingResponse": "forebay.outputs",
    "RenderedChat": "forebay.outputs",
    "RequestOutput": "forebay.outputs",
    "SamplingParams": "forebay.sampling_params",
    "ScoringOutput": "forebay.outputs",
    "TextDelta": "forebay.outputs",
    "TextStream": "forebay.client",
    "chat_prompt": "forebay.client",
}

__all__ = [
    "LLM",
    "AsyncClient",
    "AsyncTextStream",
    "ClassificationOutput",
    "Client",
    "CompletionOutput",
    "EmbeddingOutput",
    "ForebayError",
    "Logprob",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "PoolingResponse",
    "RenderedChat",
    "RequestOutput",
    "SamplingParams",
    "ScoringOutput",
    "TextDelta",
    "TextStream",
    "chat_prompt",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("forebay")
    if name not in _MODULES:
        raise AttributeError(f"module 'forebay' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
