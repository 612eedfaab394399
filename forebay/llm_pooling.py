"""Owns what an LLM pools: inputs on their way through its engine, and the embeddings, classes and scores made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from forebay.errors import InvalidRequest, NotOffered
from forebay.llm_media import media_inputs
from forebay.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    Pooled,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
)
from forebay.pooling_params import PoolingParams
from forebay.v1 import prompt_pb2

if TYPE_CHECKING:
    import numpy as np

    from gpu_executor.engine import Engine, PooledOutput
    from gpu_executor.model_info import ModelInfo
    from preprocess.pooling_encoder import PoolingInput
    from preprocess.preprocessor import Preprocessor


class PoolingRun:
    """One input on its way through the engine."""

    def __init__(self, engine: Engine, number: int, found: PoolingInput, task: str, params: PoolingParams) -> None:
        from gpu_executor import request

        pooling = request.PoolingParams(
            task,
            token_type_ids=tuple(found.type_ids),
            dimensions=params.dimensions,
            normalize=params.normalize,
            activation=params.activation,
            num_instruction_tokens=found.num_instruction_tokens,
        )
        self.key = number
        self.request = request.Request(
            number, found.token_ids, pooling=pooling, media=media_inputs(found.media), positions=found.positions
        )
        engine.check(self.request)
        self._parts: list[np.ndarray] = []

    def add_rows(self, output: PooledOutput) -> None:
        """Takes the next rows."""
        self._parts.append(output.rows)

    @property
    def rows(self) -> np.ndarray:
        """(n, columns) float32, once the request has finished."""
        import numpy as np

        return np.concatenate(self._parts)

    @property
    def row(self) -> list[float]:
        """The only row; raises NotOffered where the pooler gives one per token."""
        rows = self.rows
        if len(rows) != 1:
            raise NotOffered("the pooler is set to give numbers for each token, not for the whole input: use encode")
        return rows[0].tolist()

    def output(self, outputs: Pooled) -> PoolingRequestOutput[Pooled]:
        """What became of this input."""
        request = self.request
        return PoolingRequestOutput(
            str(self.key), outputs, request.prompt_token_ids, num_cached_tokens=request.num_cached_tokens
        )

    def embedding(self) -> PoolingRequestOutput[EmbeddingOutput]:
        return self.output(EmbeddingOutput(self.row))

    def classes(self, labels: Sequence[str]) -> PoolingRequestOutput[ClassificationOutput]:
        """With the classes' names, unless the checkpoint names another number of them."""
        row = self.row
        return self.output(ClassificationOutput(row, list(labels) if len(labels) == len(row) else []))

    def score(self) -> PoolingRequestOutput[ScoringOutput]:
        return self.output(ScoringOutput(self.row[0]))

    def data(self, *, by_token: bool) -> PoolingRequestOutput[PoolingOutput]:
        """`by_token` says whether there is a row for each token or step."""
        import torch

        rows = torch.from_numpy(self.rows)
        return self.output(PoolingOutput(rows if by_token else rows[0]))


class InputReader:
    """Makes engine inputs of what users write, for one model. A refusal names the input by its number."""

    def __init__(self, preprocessor: Preprocessor, info: ModelInfo) -> None:
        self._encoder, self._info = preprocessor.pooling, info

    def check_task(self, *tasks: str) -> None:
        """Raises NotOffered, naming what the model does, unless it does one of these."""
        served = self._info.tasks
        if not set(tasks) & set(served):
            raise NotOffered(f"this model serves {' and '.join(served)}, not {tasks[0]}")

    def inputs(
        self, prompts: Sequence[prompt_pb2.Prompt], params: PoolingParams, prompt_name: str = ""
    ) -> list[PoolingInput]:
        """One for each prompt."""
        most = self._info.max_model_len
        return [
            _named(
                index,
                self._encoder.encode,
                prompt,
                prompt_name=prompt_name,
                max_model_len=most,
                **self._options(params),
            )
            for index, prompt in enumerate(prompts)
        ]

    def pairs(
        self,
        queries: Sequence[prompt_pb2.Prompt],
        documents: Sequence[prompt_pb2.Prompt],
        params: PoolingParams,
    ) -> list[PoolingInput]:
        """One for each query and document, read together."""
        return [
            _named(index, self._encoder.encode_pair, query, document, **self._options(params))
            for index, (query, document) in enumerate(zip(queries, documents, strict=True))
        ]

    def _options(self, params: PoolingParams) -> dict[str, Any]:
        cut, most = params.max_tokens, self._info.max_model_len
        return {
            "num_token_types": self._info.num_token_types,
            "max_tokens": None if cut is None else min(cut, most),
        }


def _named(index: int, encode: Any, *arguments: Any, **options: Any) -> PoolingInput:
    try:
        return encode(*arguments, **options)
    except InvalidRequest as error:
        raise InvalidRequest(f"input {index}: {error.message}", error.reason, fields=error.fields) from None


def cosine_scores(
    queries: Sequence[PoolingRun], documents: Sequence[PoolingRun]
) -> list[PoolingRequestOutput[ScoringOutput]]:
    """The cosine of each document's vector with its query's, or with that of the only query."""
    import numpy as np

    from frontend.embedding_formats import cosines

    scores = cosines(np.array([run.row for run in queries]), np.array([run.row for run in documents]))
    of_each = queries if len(queries) > 1 else list(queries) * len(documents)
    return [
        PoolingRequestOutput(
            str(document.key),
            ScoringOutput(score),
            query.request.prompt_token_ids + document.request.prompt_token_ids,
            num_cached_tokens=query.request.num_cached_tokens + document.request.num_cached_tokens,
        )
        for query, document, score in zip(of_each, documents, scores.tolist(), strict=True)
    ]
