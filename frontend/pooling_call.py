"""Owns one call's many inputs: each becomes a flight, only so many at once, and one failure ends them all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from forebay.errors import ForebayError, InvalidRequest
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import generation_pb2, prompt_pb2
from forebay.v1.errors_pb2 import ErrorReason
from frontend.dispatcher import Dispatcher, ModelFacts
from frontend.flight import Flight
from frontend.prompt_encoder import PromptEncoder
from frontend.request_scope import RequestScope
from frontend.tokenization import check_token_ids
from preprocess.ready_prompt import ReadyPrompt


@dataclass(frozen=True, slots=True)
class PoolingJob:
    """One input: its name in the request, and what makes a preprocess.pooling_encoder.PoolingInput of it in a thread.

    `elsewhere` is the prompt that a preprocess service encodes instead, of which `max_tokens` are kept.
    """

    field: str
    prompt: prompt_pb2.Prompt  # the document's of a pair
    encode: Callable[[], Any]
    elsewhere: prompt_pb2.Prompt | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Pooled:
    """What became of one input."""

    rows: np.ndarray  # (n, columns) float32
    num_prompt_tokens: int
    num_cached_tokens: int


class PoolingCall:
    """The inputs of one call on their way. A refusal of an input names it."""

    def __init__(self, scope: RequestScope, facts: ModelFacts, encoder: PromptEncoder, dispatcher: Dispatcher) -> None:
        self.facts = facts
        self._scope, self._encoder, self._dispatcher = scope, encoder, dispatcher
        self._num_prompt_tokens, self._num_cached_tokens = 0, 0

    async def run(self, jobs: Sequence[PoolingJob], params: wire.PoolingParams) -> list[Pooled]:
        """The results in the jobs' order. As many are under way as executors run at once, so that other calls get through."""
        results: list[Pooled | None] = [None] * len(jobs)
        remaining = iter(enumerate(jobs))  # the workers draw from it in turn

        async def work() -> None:
            for index, job in remaining:
                results[index] = await self._pool(job, params)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(jobs), self._dispatcher.max_num_seqs)):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return results

    def usage(self) -> generation_pb2.Usage:
        """What was counted up to now."""
        return generation_pb2.Usage(prompt_tokens=self._num_prompt_tokens, cached_prompt_tokens=self._num_cached_tokens)

    async def _pool(self, job: PoolingJob, params: wire.PoolingParams) -> Pooled:
        sink = _ResultSink()
        try:
            if job.elsewhere is not None:
                limit = self.facts.max_model_len if job.max_tokens is None else None
                ready = await self._encoder.encode(job.elsewhere, self.facts, max_tokens=limit, cut=job.max_tokens)
                flight = self._flight(ready, params, sink)
            else:
                found = await self._encoder.threads.run_on(job.prompt, job.encode)
                ready = await self._encoder.threads.run_on(job.prompt, ReadyPrompt.of, found, self.facts.float_dtype)
                flight = self._flight(ready, params, sink, found.type_ids, found.num_instruction_tokens)
            try:
                self._dispatcher.launch(flight)
                rows = await sink.rows()
            finally:
                self._dispatcher.release(flight)
        except InvalidRequest as error:
            problem = error.message
            raise InvalidRequest(f"{job.field}: {problem}", error.reason, fields=((job.field, problem),)) from None
        num_cached_tokens = flight.cached_prompt_tokens or 0
        self._num_prompt_tokens += flight.num_prompt_tokens
        self._num_cached_tokens += num_cached_tokens
        return Pooled(rows, flight.num_prompt_tokens, num_cached_tokens)

    def _flight(
        self,
        prompt: ReadyPrompt,
        params: wire.PoolingParams,
        sink: _ResultSink,
        type_ids: Sequence[int] = (),
        num_instruction_tokens: int = 0,
    ) -> Flight:
        facts, num_tokens = self.facts, len(prompt.token_ids)
        check_token_ids(prompt.token_ids, facts.vocab_size, "token_ids")
        if num_tokens > facts.max_model_len:
            raise InvalidRequest(
                f"the prompt has {num_tokens:,} tokens; the model takes {facts.max_model_len:,}",
                ErrorReason.ERROR_REASON_TOO_LONG,
            )
        if type_ids and len(type_ids) != num_tokens:
            raise InvalidRequest(f"there are {len(type_ids):,} token types for {num_tokens:,} tokens")
        if max(type_ids, default=0) >= max(1, facts.num_token_types):
            has = f"{facts.num_token_types} token types" if facts.num_token_types else "no token types"
            raise InvalidRequest(f"token type {max(type_ids)} is not one of the model's, which has {has}")
        own = wire.PoolingParams(token_type_ids=type_ids, num_instruction_tokens=num_instruction_tokens)
        own.MergeFrom(params)
        scope = self._scope
        return Flight(
            prompt.token_ids,
            None,
            sink,
            pooling=own,
            priority=scope.priority,
            deadline=scope.deadline,
            media=prompt.media,
            positions=prompt.positions,
        )


class _ResultSink:
    """A flight's result, for the one who waits for it."""

    def __init__(self) -> None:
        self._result: asyncio.Future[np.ndarray | ForebayError] = asyncio.get_running_loop().create_future()

    def pooled(self, values: bytes, num_rows: int, num_columns: int) -> None:
        rows = np.frombuffer(values, "<f4").reshape(num_rows, num_columns)
        if not self._result.done():  # else who waited has left
            self._result.set_result(rows)

    def fail(self, error: ForebayError) -> None:
        if not self._result.done():
            self._result.set_result(error)

    async def rows(self) -> np.ndarray:
        """(n, columns); raises the error that the flight ended with."""
        result = await self._result
        if isinstance(result, ForebayError):
            raise result
        return result
