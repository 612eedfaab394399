"""Owns PoolingService: embeddings, classes, scores and rewards of many inputs in one call."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Sequence

import grpc
import numpy as np

from forebay.errors import InvalidRequest, NotOffered
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import pooling_pb2 as api
from forebay.v1 import prompt_pb2
from forebay.v1.model_pb2 import MODEL_TASK_CLASSIFY, MODEL_TASK_EMBED, MODEL_TASK_REWARD, MODEL_TASK_SCORE
from frontend.dispatcher import Dispatcher, ModelFacts
from frontend.embedding_formats import checked_format, cosines, pack, row_bytes
from frontend.model_catalogue import ServedModel
from frontend.pooling_call import Pooled, PoolingCall, PoolingJob
from frontend.prompt_encoder import PromptEncoder
from frontend.request_scope import RequestScope, RequestScopes

MAX_INPUTS = 2_048
SLACK_BYTES = 64 << 10  # of an answer, for what is not numbers

Request = api.EmbedRequest | api.ClassifyRequest | api.ScoreRequest | api.RewardRequest


class PoolingService:
    """forebay.v1.PoolingService. Answers of more than `max_answer_bytes` are refused, before the work where that is known."""

    def __init__(
        self,
        model: ServedModel,
        encoder: PromptEncoder,
        scopes: RequestScopes,
        dispatcher: Dispatcher,
        *,
        max_answer_bytes: int,
    ) -> None:
        self._model, self._encoder, self._scopes, self._dispatcher = model, encoder, scopes, dispatcher
        self._max_answer_bytes = max_answer_bytes - SLACK_BYTES

    async def Embed(self, request: api.EmbedRequest, context: grpc.aio.ServicerContext) -> api.EmbedResponse:
        """A vector per input."""
        _check_count(request.inputs, "inputs")
        format = checked_format(request.format)
        async with self._enter(request, context, MODEL_TASK_EMBED) as (scope, call):
            size = call.facts.embedding_size
            dimensions = request.dimensions if request.HasField("dimensions") else size
            if not 1 <= dimensions <= size:
                rule = f"must be 1 to {size:,}"
                raise InvalidRequest(f"dimensions is {dimensions:,}; it {rule}", fields=(("dimensions", rule),))
            self._check_size(len(request.inputs) * row_bytes(format, dimensions))
            params = wire.PoolingParams(task=MODEL_TASK_EMBED)
            if request.HasField("dimensions"):
                params.dimensions = dimensions
            if request.HasField("normalize"):
                params.normalize = request.normalize
            jobs = self._jobs(
                request.inputs, "inputs", _max_tokens(request, call.facts), call, prompt_name=request.prompt_name
            )
            vectors = _matrix(await call.run(jobs, params))  # (N, dimensions)
            embeddings, scales = pack(vectors, format)
            return api.EmbedResponse(
                request_id=scope.request_id,
                dimensions=vectors.shape[1],
                format=format,
                embeddings=embeddings,
                scales=scales,
                usage=call.usage(),
            )

    async def Classify(self, request: api.ClassifyRequest, context: grpc.aio.ServicerContext) -> api.ClassifyResponse:
        """The probability of each class per input."""
        _check_count(request.inputs, "inputs")
        async with self._enter(request, context, MODEL_TASK_CLASSIFY) as (scope, call):
            self._check_size(len(request.inputs) * 4 * call.facts.num_classes)
            jobs = self._jobs(request.inputs, "inputs", _max_tokens(request, call.facts), call)
            classes = _matrix(await call.run(jobs, _with_activation(MODEL_TASK_CLASSIFY, request)))  # (N, classes)
            return api.ClassifyResponse(
                request_id=scope.request_id,
                labels=self._model.labels_of(classes.shape[1]),
                num_classes=classes.shape[1],
                probabilities=classes.tobytes(),
                usage=call.usage(),
            )

    async def Score(self, request: api.ScoreRequest, context: grpc.aio.ServicerContext) -> api.ScoreResponse:
        """How well documents answer queries: by a model that reads both together, else by the cosine of their vectors."""
        _check_count(request.documents, "documents")
        if len(request.queries) not in (0, 1, len(request.documents)):
            rule = f"must be 1, or as many as the {len(request.documents):,} documents"
            raise InvalidRequest(
                f"there are {len(request.queries):,} queries; they {rule}", fields=(("queries", rule),)
            )
        async with self._enter(request, context, MODEL_TASK_SCORE, MODEL_TASK_EMBED) as (scope, call):
            max_tokens = _max_tokens(request, call.facts)
            if MODEL_TASK_SCORE in call.facts.tasks:
                jobs = self._pair_jobs(request, max_tokens, call)
                rows = _matrix(await call.run(jobs, _with_activation(MODEL_TASK_SCORE, request)))  # (N, 1)
                scores = rows[:, 0]
            else:
                if not request.queries:
                    rule = "must be there: this model embeds queries and documents each by itself"
                    raise InvalidRequest(f"queries {rule}", fields=(("queries", rule),))
                queries = self._jobs(request.queries, "queries", max_tokens, call)
                documents = self._jobs(request.documents, "documents", max_tokens, call)
                params = wire.PoolingParams(task=MODEL_TASK_EMBED)
                vectors = _matrix(await call.run([*queries, *documents], params))
                scores = cosines(vectors[: len(queries)], vectors[len(queries) :])
            return api.ScoreResponse(request_id=scope.request_id, scores=scores.tolist(), usage=call.usage())

    async def Reward(self, request: api.RewardRequest, context: grpc.aio.ServicerContext) -> api.RewardResponse:
        """A table of numbers per input."""
        _check_count(request.inputs, "inputs")
        async with self._enter(request, context, MODEL_TASK_REWARD) as (scope, call):
            jobs = self._jobs(request.inputs, "inputs", _max_tokens(request, call.facts), call)
            results = await call.run(jobs, _with_activation(MODEL_TASK_REWARD, request))
            self._check_size(sum(pooled.rows.nbytes for pooled in results))
            tables = [
                api.RewardTable(num_rows=len(rows), num_columns=rows.shape[1], values=rows.tobytes())
                for rows in (pooled.rows for pooled in results)
            ]
            return api.RewardResponse(request_id=scope.request_id, tables=tables, usage=call.usage())

    @contextlib.asynccontextmanager
    async def _enter(
        self, request: Request, context: grpc.aio.ServicerContext, *tasks: int
    ) -> AsyncIterator[tuple[RequestScope, PoolingCall]]:
        """A slot, and what runs inputs in it; raises NotOffered unless the model does one of the tasks."""
        async with self._scopes.enter(request, context) as scope:
            facts = await self._dispatcher.wait_for_facts()
            if not set(tasks) & set(facts.tasks):
                facts.check_task(tasks[0])
            yield scope, PoolingCall(scope, facts, self._encoder, self._dispatcher)

    def _jobs(
        self,
        prompts: Sequence[prompt_pb2.Prompt],
        field: str,
        max_tokens: int | None,
        call: PoolingCall,
        prompt_name: str = "",
    ) -> list[PoolingJob]:
        encode = functools.partial(
            self._encoder.threads.preprocessor.pooling.encode,
            prompt_name=prompt_name,
            num_token_types=call.facts.num_token_types,
            max_tokens=max_tokens,
            max_model_len=call.facts.max_model_len,
        )
        pooling = self._encoder.threads.preprocessor.pooling
        return [
            PoolingJob(
                f"{field}[{index}]",
                prompt,
                functools.partial(encode, prompt),
                elsewhere=pooling.whole_prompt(prompt, prompt_name) if self._encoder.serves_elsewhere(prompt) else None,
                max_tokens=max_tokens,
            )
            for index, prompt in enumerate(prompts)
        ]

    def _pair_jobs(self, request: api.ScoreRequest, max_tokens: int | None, call: PoolingCall) -> list[PoolingJob]:
        if not request.queries:
            for index, document in enumerate(request.documents):
                if document.WhichOneof("kind") != "token_ids":
                    rule = "without queries, it must be a whole pair, given as token ids"
                    field = f"documents[{index}]"
                    raise InvalidRequest(f"{field}: {rule}", fields=((field, rule),))
            return self._jobs(request.documents, "documents", max_tokens, call)
        queries = request.queries if len(request.queries) > 1 else list(request.queries) * len(request.documents)
        encode = functools.partial(
            self._encoder.threads.preprocessor.pooling.encode_pair,
            num_token_types=call.facts.num_token_types,
            max_tokens=max_tokens,
        )
        return [
            PoolingJob(f"documents[{index}]", document, functools.partial(encode, query, document))
            for index, (query, document) in enumerate(zip(queries, request.documents, strict=True))
        ]

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_answer_bytes:
            raise InvalidRequest(
                f"the answer would have {num_bytes:,} bytes; {self._max_answer_bytes:,} are sent at most: ask for fewer "
                "inputs at once",
                fields=(("inputs", "are too many for one answer"),),
            )


def _check_count(inputs: Sequence[prompt_pb2.Prompt], field: str) -> None:
    if not 1 <= len(inputs) <= MAX_INPUTS:
        rule = f"must be 1 to {MAX_INPUTS:,}"
        raise InvalidRequest(f"there are {len(inputs):,} {field}; they {rule}", fields=((field, rule),))


def _max_tokens(request: Request, facts: ModelFacts) -> int | None:
    """How many tokens of a longer input are kept, and no more than the model takes; None: it is refused."""
    if not request.HasField("truncate_prompt_tokens"):
        return None
    if not request.truncate_prompt_tokens:
        rule = "must be at least 1"
        raise InvalidRequest(f"truncate_prompt_tokens is 0; it {rule}", fields=(("truncate_prompt_tokens", rule),))
    return min(request.truncate_prompt_tokens, facts.max_model_len)


def _with_activation(
    task: int, request: api.ClassifyRequest | api.ScoreRequest | api.RewardRequest
) -> wire.PoolingParams:
    params = wire.PoolingParams(task=task)
    if request.HasField("activation"):
        params.activation = request.activation
    return params


def _matrix(results: Sequence[Pooled]) -> np.ndarray:
    """One row per input: (N, columns); raises NotOffered where the pooler gives other numbers of rows."""
    for pooled in results:
        if len(pooled.rows) != 1:
            raise NotOffered("the server is set to give numbers for each token of an input, not for the whole")
    return np.concatenate([pooled.rows for pooled in results])
