"""Owns the threads that turn prompts into ids and tensors beside the event loop, and TokenizerService on top of them."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from forebay.errors import InvalidRequest, ResourceExhausted
from forebay.v1 import prompt_pb2
from forebay.v1 import tokenizer_pb2 as api
from forebay.v1.errors_pb2 import ErrorReason
from frontend.dispatcher import Dispatcher
from frontend.media_upload import FlightMedia, packed_media
from frontend.model_catalogue import ServedModel

T = TypeVar("T")

BUSY_RETRY_MS = 200


@dataclasses.dataclass(frozen=True, slots=True)
class ReadyPrompt:
    """A prompt for a flight: ids, media, and rotary positions, axis by axis, where these are not the tokens' indexes."""

    token_ids: list[int]
    media: tuple[FlightMedia, ...] = ()
    positions: Sequence[Sequence[int]] = ()


def has_media(prompt: prompt_pb2.Prompt) -> bool:
    """Whether anything in the prompt is not text."""
    parts = (part for message in prompt.chat.messages for part in message.content)
    return bool(prompt.media) or any(part.WhichOneof("kind") == "media" for part in parts)


class PreprocessThreads:
    """Runs a Preprocessor's work in a few threads. Callers that leave do not wait for their work to end.

    Prompts with media have threads of their own: they wait for hosts and decoders, which is not to hold up texts.
    """

    def __init__(self, preprocessor: Any, num_threads: int, max_waiting: int, *, num_media_threads: int = 4) -> None:
        self.preprocessor = preprocessor
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="preprocess")
        self._media_threads = ThreadPoolExecutor(num_media_threads, thread_name_prefix="preprocess-media")
        self._max_waiting = max_waiting + num_threads
        self._num_waiting = 0

    async def encode(
        self,
        prompt: prompt_pb2.Prompt,
        *,
        max_tokens: int | None = None,
        cut: int | None = None,
        float_dtype: str = "float32",
    ) -> ReadyPrompt:
        """The prompt as executors take it, cut to its last `cut` tokens; the tensors of its media are in `float_dtype`.

        Text that must become more than `max_tokens` is refused before it is tokenized.
        """
        if has_media(prompt):
            return await self.run_on(prompt, self._encode_media, prompt, max_tokens, cut, float_dtype)
        if prompt.WhichOneof("kind") == "token_ids":
            token_ids = self.preprocessor.encode(prompt)  # nothing to compute
        else:
            token_ids = await self.run(self.preprocessor.encode, prompt, max_tokens=max_tokens)
        return ReadyPrompt(token_ids if cut is None else token_ids[-cut:])

    def _encode_media(
        self, prompt: prompt_pb2.Prompt, max_tokens: int | None, cut: int | None, float_dtype: str
    ) -> ReadyPrompt:
        encoded = self.preprocessor.encode_prompt(prompt, max_tokens=max_tokens).end(cut)
        positions = () if encoded.positions is None else encoded.positions.tolist()
        return ReadyPrompt(encoded.token_ids, packed_media(encoded.media, float_dtype), positions)

    async def run(self, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Runs the work in a thread; raises what it raises."""
        return await self._run(self._threads, functools.partial(work, *arguments, **options))

    async def run_on(self, prompt: prompt_pb2.Prompt, work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """The same for work on this prompt, which may have media."""
        threads = self._media_threads if has_media(prompt) else self._threads
        return await self._run(threads, functools.partial(work, *arguments, **options))

    async def _run(self, threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        self._num_waiting += 1
        future = threads.submit(work)
        future.add_done_callback(self._note_end)
        return await asyncio.wrap_future(future)

    def check_room(self) -> None:
        """Raises ResourceExhausted if too much waits for the threads already."""
        if self._num_waiting >= self._max_waiting:
            raise ResourceExhausted(f"{self._num_waiting} calls wait for the tokenizer", retry_after_ms=BUSY_RETRY_MS)

    def close(self) -> None:
        """Forgets what waits."""
        for threads in (self._threads, self._media_threads):
            threads.shutdown(wait=False, cancel_futures=True)

    def _note_end(self, future: object) -> None:
        self._num_waiting -= 1  # from a worker thread or the loop's; under the GIL, a lost update is harmless


class TokenizerService:
    """forebay.v1.TokenizerService."""

    def __init__(
        self,
        model: ServedModel,
        threads: PreprocessThreads,
        dispatcher: Dispatcher,
        check_open: Callable[[], None],
    ) -> None:
        self._model, self._threads, self._dispatcher, self._check_open = model, threads, dispatcher, check_open

    async def Tokenize(self, request: api.TokenizeRequest, context: grpc.aio.ServicerContext) -> api.TokenizeResponse:
        """A prompt's ids, as generation would see them."""
        self._check(request.model)
        preprocessor = self._threads.preprocessor
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        token_ids = await self._threads.run_on(
            request.prompt, preprocessor.encode, request.prompt, add_special_tokens=special
        )
        facts = self._dispatcher.facts
        response = api.TokenizeResponse(token_ids=token_ids, max_model_len=facts.max_model_len if facts else 0)
        if request.with_tokens:
            response.tokens.extend(await self._threads.run(preprocessor.tokens, token_ids))
        return response

    async def Detokenize(
        self, request: api.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> api.DetokenizeResponse:
        """The text of ids."""
        self._check(request.model)
        facts = self._dispatcher.facts
        if facts is not None:
            check_token_ids(request.token_ids, facts.vocab_size, "token_ids")
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        decode, token_ids = self._threads.preprocessor.decode, list(request.token_ids)
        return api.DetokenizeResponse(text=await self._threads.run(decode, token_ids, skip_special_tokens=skip))

    async def RenderChat(
        self, request: api.RenderChatRequest, context: grpc.aio.ServicerContext
    ) -> api.RenderChatResponse:
        """Messages through the model's chat template."""
        self._check(request.model)
        prompt, render = prompt_pb2.Prompt(chat=request.chat), self._threads.preprocessor.render_chat
        text, token_ids = await self._threads.run_on(prompt, render, request.chat)
        return api.RenderChatResponse(text=text, token_ids=token_ids)

    def _check(self, model: str) -> None:
        self._check_open()
        self._model.check_name(model)
        self._threads.check_room()


def check_token_ids(token_ids: Any, vocab_size: int, field: str) -> None:
    """Raises InvalidRequest if an id is not in the vocabulary. A vocabulary of size 0 is not known."""
    if vocab_size and (largest := max(token_ids, default=0)) >= vocab_size:
        raise InvalidRequest(
            f"token id {largest} is not in the vocabulary of {vocab_size}",
            ErrorReason.ERROR_REASON_TOKEN_OUT_OF_RANGE,
            fields=((field, f"ids must be below {vocab_size}"),),
        )
