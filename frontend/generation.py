"""Owns a generation request's life, from its arrival to its last byte, and GenerationService on top of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from forebay.errors import InvalidRequest
from forebay.v1 import generation_pb2 as api
from forebay.v1.errors_pb2 import ErrorReason
from forebay.v1.model_pb2 import MODEL_TASK_GENERATE
from frontend.dispatcher import Dispatcher, ModelFacts
from frontend.flight import Flight
from frontend.output import Output, Text
from frontend.prompt_encoder import PromptEncoder
from frontend.request_scope import RequestScope, RequestScopes
from frontend.tokenization import check_token_ids


class Generation:
    """One request that runs: its flight through the executors and the output that its client has yet to get."""

    __slots__ = ("flight", "output", "request_id")

    def __init__(self, request_id: str, flight: Flight, output: Output) -> None:
        self.request_id, self.flight, self.output = request_id, flight, output

    def start(self) -> api.StreamStart:
        """What is known at the beginning."""
        return api.StreamStart(
            request_id=self.request_id,
            seed=self.flight.sampling.seed,
            prompt_tokens=self.flight.num_prompt_tokens,
            prompt_logprobs=self.output.prompt_logprobs,
        )

    def usage(self) -> api.Usage:
        """What was counted up to now."""
        return api.Usage(
            prompt_tokens=self.flight.num_prompt_tokens,
            completion_tokens=self.output.num_tokens,
            cached_prompt_tokens=self.flight.cached_prompt_tokens or 0,
        )


class GenerationService:
    """forebay.v1.GenerationService. `resolve_sampling` is frontend.sampling's, `make_text` makes a SequenceText."""

    def __init__(
        self,
        encoder: PromptEncoder,
        scopes: RequestScopes,
        dispatcher: Dispatcher,
        *,
        resolve_sampling: Callable[..., Any],
        make_text: Callable[..., Text],
        max_unsent_bytes: int,
    ) -> None:
        self._encoder, self._threads = encoder, encoder.threads
        self._scopes, self._dispatcher = scopes, dispatcher
        self._resolve_sampling, self._make_text = resolve_sampling, make_text
        self._max_unsent_bytes = max_unsent_bytes

    async def Generate(self, request: api.GenerateRequest, context: grpc.aio.ServicerContext) -> api.GenerateResponse:
        """All sequences in one answer."""
        async with self._generate(request, context, None) as generation:
            output = generation.output
            await output.ready()
            if output.error is not None:
                raise output.error
            return api.GenerateResponse(
                request_id=generation.request_id,
                sequences=[_sequence(delta) for delta in output.take()],
                usage=generation.usage(),
                seed=generation.flight.sampling.seed,
                prompt_logprobs=output.prompt_logprobs,
            )

    async def StreamGenerate(self, request: api.StreamGenerateRequest, context: grpc.aio.ServicerContext) -> None:
        """Deltas as they come."""
        async with self._generate(request, context, self._max_unsent_bytes) as generation:
            output, task = generation.output, asyncio.current_task()
            start: api.StreamStart | None = None
            while True:
                await output.ready()
                response = api.StreamGenerateResponse(deltas=output.take())
                done, error = output.done, output.error
                if start is None and response.deltas:
                    start = generation.start()
                    response.start.CopyFrom(start)
                    await _send_headers(context)
                if done:
                    response.usage.CopyFrom(generation.usage())
                if response.deltas or done:
                    await self._write(context, response, output, task)
                if error is not None:
                    raise error
                if done:
                    return

    async def _write(
        self,
        context: grpc.aio.ServicerContext,
        response: api.StreamGenerateResponse,
        output: Output,
        task: asyncio.Task[Any],
    ) -> None:
        """Writes a message; raises the output's error if it was interrupted meanwhile."""
        output.writer = task
        try:
            await context.write(response)
        except asyncio.CancelledError:
            if not output.interrupted or task.uncancel():  # the caller left, whatever else happened
                raise
            raise output.error from None
        finally:
            output.writer = None

    @contextlib.asynccontextmanager
    async def _generate(
        self,
        request: api.GenerateRequest | api.StreamGenerateRequest,
        context: grpc.aio.ServicerContext,
        max_unsent_bytes: int | None,
    ) -> AsyncIterator[Generation]:
        """Brings the request to an executor; whatever happens, nothing of it is left there or here at the end."""
        generation: Generation | None = None
        async with self._scopes.enter(request, context) as scope:
            try:
                facts = await self._dispatcher.wait_for_facts()
                facts.check_task(MODEL_TASK_GENERATE)
                generation = await self._prepare(request, scope, facts, max_unsent_bytes)
                self._dispatcher.launch(generation.flight)
                yield generation
            finally:
                if generation is not None:
                    self._dispatcher.release(generation.flight)

    async def _prepare(
        self,
        request: api.GenerateRequest | api.StreamGenerateRequest,
        scope: RequestScope,
        facts: ModelFacts,
        max_unsent_bytes: int | None,
    ) -> Generation:
        preprocessor = self._threads.preprocessor
        decoder_token_ids = preprocessor.decoder_prompt(request.prompt)
        # What is cut may be long, and so may an encoder's input, whose limit is another: the executor knows it.
        limited = decoder_token_ids is None and not request.sampling.HasField("truncate_prompt_tokens")
        limit = facts.max_model_len if limited else None
        cut = _cut(request.sampling)
        prompt = await self._encoder.encode(request.prompt, facts, max_tokens=limit, cut=cut)
        token_ids = prompt.token_ids
        check_token_ids(token_ids, facts.vocab_size, "prompt")
        encoder_token_ids: list[int] = []
        if decoder_token_ids is not None:
            check_token_ids(decoder_token_ids, facts.vocab_size, "prompt.decoder_token_ids")
            encoder_token_ids, token_ids = token_ids, decoder_token_ids
        resolve = functools.partial(
            self._resolve_sampling,
            request.sampling,
            defaults=preprocessor.default_sampling,
            prompt_len=len(token_ids),
            max_model_len=facts.max_model_len,
            vocab_size=facts.vocab_size,
            preprocessor=preprocessor,
        )
        # Bad words are tokenized, which may take long; all else is a matter of microseconds.
        resolved = await self._threads.run(resolve) if request.sampling.bad_words else resolve()
        texts = [
            self._make_text(
                preprocessor.tokenizer if preprocessor.has_tokenizer else None,
                stop=resolved.stop,
                skip_special_tokens=resolved.skip_special_tokens,
                include_stop_str_in_output=resolved.include_stop,
                min_tokens=resolved.executor.min_tokens,
            )
            for _ in range(resolved.n)
        ]
        output = Output(texts, token_ids, max_unsent_bytes=max_unsent_bytes)
        flight = Flight(
            token_ids,
            resolved.executor,
            output,
            priority=scope.priority,
            deadline=scope.deadline,
            encoder_token_ids=encoder_token_ids,
            media=prompt.media,
            positions=prompt.positions,
        )
        output.awaits_prompt_logprobs = flight.awaits_prompt_logprobs
        return Generation(scope.request_id, flight, output)


async def _send_headers(context: grpc.aio.ServicerContext) -> None:
    """Sends the headers before the first message, and wholly, even if the caller is interrupted meanwhile.

    Were they broken off, alone or within a write, gRPC would send them again with the error's status, which its core
    refuses, and the call would never end.
    """
    sending = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.gather(sending, return_exceptions=True)
        raise


def _cut(sampling: Any) -> int | None:
    """How many of the prompt's tokens to keep; None keeps all."""
    if not sampling.HasField("truncate_prompt_tokens"):
        return None
    if not sampling.truncate_prompt_tokens:
        raise InvalidRequest(
            "truncate_prompt_tokens is 0; it must be at least 1",
            ErrorReason.ERROR_REASON_SAMPLING_OUT_OF_RANGE,
            fields=(("sampling.truncate_prompt_tokens", "must be at least 1"),),
        )
    return sampling.truncate_prompt_tokens


def _sequence(delta: api.SequenceDelta) -> api.GeneratedSequence:
    sequence = api.GeneratedSequence(
        index=delta.index,
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,
        finish_reason=delta.finish_reason,
    )
    if delta.HasField("stop_string"):
        sequence.stop_string = delta.stop_string
    if delta.HasField("stop_token_id"):
        sequence.stop_token_id = delta.stop_token_id
    return sequence
