"""Owns the asyncio client of a frontend. It loads neither torch nor transformers nor numpy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc

from forebay.client_channel import DEFAULT_MAX_MESSAGE_BYTES, DEFAULT_SERVER, Metadata, channel_settings
from forebay.client_outputs import StreamFacts, to_request_output
from forebay.client_pooling import (
    classify_request,
    embed_request,
    read_classes,
    read_embeddings,
    read_rewards,
    read_scores,
    reward_request,
    score_request,
)
from forebay.client_requests import Messages, PromptInput, chat_prompt, generation_request, to_prompt, to_token_ids
from forebay.errors import Cancelled
from forebay.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    PoolingOutput,
    PoolingResponse,
    RenderedChat,
    RequestOutput,
    ScoringOutput,
    TextDelta,
)
from forebay.pooling_params import PoolingParams
from forebay.rpc import error_from_rpc
from forebay.sampling_params import SamplingParams
from forebay.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    pooling_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
)


class AsyncTextStream(StreamFacts):
    """The deltas of one request, as they come. Leaving the loop early, or the `async with` block, cancels the request."""

    def __init__(self, call: grpc.aio.UnaryStreamCall, params: SamplingParams) -> None:
        super().__init__(params)
        self._call = call

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        """Raises the ForebayError that the request ends with."""
        return _Deltas(self, self._call)

    def cancel(self) -> None:
        """Ends the request; who iterates gets Cancelled. Does nothing if it has ended."""
        self._call.cancel()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()


class _Deltas:
    """Iterates over a stream. A loop that is left holds the only reference, and its end cancels the request at once:
    an async generator would be closed by the event loop, some time later."""

    def __init__(self, stream: AsyncTextStream, call: grpc.aio.UnaryStreamCall) -> None:
        self._stream, self._call = stream, call
        self._ready: list[TextDelta] = []  # of the last message, the next one at the end

    def __aiter__(self) -> AsyncIterator[TextDelta]:
        return self

    async def __anext__(self) -> TextDelta:
        while not self._ready:
            try:
                response = await self._call.read()
            except grpc.RpcError as error:
                raise error_from_rpc(error) from None
            except asyncio.CancelledError:
                _check_cancelled(self._call)
                raise
            if response is grpc.aio.EOF:
                raise StopAsyncIteration
            self._ready = self._stream._read(response)[::-1]
        return self._ready.pop()

    def __del__(self) -> None:
        self._call.cancel()


class AsyncClient:
    """A connection to a frontend, for one event loop: make it while that runs. Arguments and errors are those of Client."""

    def __init__(
        self,
        target: str = DEFAULT_SERVER,
        *,
        timeout: float | None = None,
        metadata: Metadata = (),
        secure: bool = False,
        root_certificates: bytes | None = None,
        private_key: bytes | None = None,
        certificate_chain: bytes | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        retry: bool = True,
    ) -> None:
        settings = channel_settings(
            secure=secure, root_certificates=root_certificates, private_key=private_key,
            certificate_chain=certificate_chain, metadata=metadata, max_message_bytes=max_message_bytes, retry=retry,
        )  # fmt: skip
        self._timeout, self._metadata = timeout, settings.metadata
        if settings.credentials is None:
            self._channel = grpc.aio.insecure_channel(target, settings.options)
        else:
            self._channel = grpc.aio.secure_channel(target, settings.credentials, settings.options)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._pooling = pooling_pb2_grpc.PoolingServiceStub(self._channel)
        self._tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection and ends the calls on it."""
        await self._channel.close()

    async def generate(
        self,
        prompt: PromptInput,
        sampling_params: SamplingParams | None = None,
        *,
        model: str = "",
        priority: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> RequestOutput:
        """Continues one prompt, a text, token ids or a dictionary of either, and gives all sequences when they are done.

        `model` is a served name, empty for the only one; a lower `priority` runs earlier.
        """
        message, params = to_prompt(prompt), sampling_params or SamplingParams()
        request = generation_request(
            generation_pb2.GenerateRequest, message, params, model=model, priority=priority, request_id=request_id
        )
        return to_request_output(await self._call(self._generation.Generate, request, timeout), message, params)

    def stream(
        self,
        prompt: PromptInput,
        sampling_params: SamplingParams | None = None,
        *,
        model: str = "",
        priority: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> AsyncTextStream:
        """As `generate`, token by token. Errors come while iterating."""
        message, params = to_prompt(prompt), sampling_params or SamplingParams()
        request = generation_request(
            generation_pb2.StreamGenerateRequest, message, params, model=model, priority=priority, request_id=request_id
        )
        call = self._generation.StreamGenerate(request, timeout=self._seconds(timeout), metadata=self._metadata)
        return AsyncTextStream(call, params)

    async def chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        model: str = "",
        priority: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> RequestOutput:
        """Answers a conversation of `{"role": "user", "content": "…"}` messages; see chat_prompt and `generate`."""
        prompt = chat_prompt(
            messages, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
        )
        return await self.generate(
            prompt, sampling_params, model=model, priority=priority, request_id=request_id, timeout=timeout
        )

    def stream_chat(
        self,
        messages: Messages,
        sampling_params: SamplingParams | None = None,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        model: str = "",
        priority: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> AsyncTextStream:
        """As `chat`, token by token. Errors come while iterating."""
        prompt = chat_prompt(
            messages, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
        )
        return self.stream(
            prompt, sampling_params, model=model, priority=priority, request_id=request_id, timeout=timeout
        )

    async def embed(
        self,
        inputs: PromptInput | Sequence[PromptInput],
        pooling_params: PoolingParams | None = None,
        *,
        prompt_name: str = "",
        format: str = "float32",
        model: str = "",
        priority: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> PoolingResponse[EmbeddingOutput]:
        """One vector per input, in their order; inputs are as in `generate`, or conversations.

        `format` is how the numbers travel: float32, float16, int8 or binary. `prompt_name` is which of the checkpoint's
        named prompts, such as "query", stands before each text.
        """
        request = embed_request(
            inputs,
            pooling_params,
            prompt_name=prompt_name,
            format=format,
            model=model,
            priority=priority,
            request_id=request_id,
        )
        return read_embeddings(await self._call(self._pooling.Embed, request, timeout))

    async def classify(
        self,
        inputs: PromptInput | Sequence[PromptInput],
        pooling_params: PoolingParams | None = None,
        *,
        model: str = "",
        priority: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> PoolingResponse[ClassificationOutput]:
        """How likely each class is, per input."""
        request = classify_request(inputs, pooling_params, model=model, priority=priority, request_id=request_id)
        return read_classes(await self._call(self._pooling.Classify, request, timeout))

    async def score(
        self,
        queries: PromptInput | Sequence[PromptInput],
        documents: PromptInput | Sequence[PromptInput] | None = None,
        pooling_params: PoolingParams | None = None,
        *,
        model: str = "",
        priority: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> PoolingResponse[ScoringOutput]:
        """How well each document answers its query, or the only one; without documents, `queries` are pairs as token ids."""
        request = score_request(
            queries, documents, pooling_params, model=model, priority=priority, request_id=request_id
        )
        return read_scores(await self._call(self._pooling.Score, request, timeout))

    async def reward(
        self,
        inputs: PromptInput | Sequence[PromptInput],
        pooling_params: PoolingParams | None = None,
        *,
        model: str = "",
        priority: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> PoolingResponse[PoolingOutput]:
        """Rows of numbers per input, one for each token or step."""
        request = reward_request(inputs, pooling_params, model=model, priority=priority, request_id=request_id)
        return read_rewards(await self._call(self._pooling.Reward, request, timeout))

    async def tokenize(
        self,
        prompt: PromptInput,
        *,
        add_special_tokens: bool = True,
        model: str = "",
        timeout: float | None = None,
    ) -> list[int]:
        """The token ids that generation would start from."""
        request = tokenizer_pb2.TokenizeRequest(
            model=model, prompt=to_prompt(prompt), add_special_tokens=add_special_tokens
        )
        return list((await self._call(self._tokenizer.Tokenize, request, timeout)).token_ids)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        model: str = "",
        timeout: float | None = None,
    ) -> str:
        """The text of token ids."""
        ids = to_token_ids(token_ids, "token_ids").ids
        request = tokenizer_pb2.DetokenizeRequest(model=model, token_ids=ids, skip_special_tokens=skip_special_tokens)
        return (await self._call(self._tokenizer.Detokenize, request, timeout)).text

    async def render_chat(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        model: str = "",
        timeout: float | None = None,
    ) -> RenderedChat:
        """A conversation as the model's chat template writes it."""
        prompt = chat_prompt(
            messages, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
        )
        request = tokenizer_pb2.RenderChatRequest(model=model, chat=prompt.chat)
        response = await self._call(self._tokenizer.RenderChat, request, timeout)
        return RenderedChat(response.text, list(response.token_ids))

    async def list_models(self, *, timeout: float | None = None) -> list[model_pb2.Model]:
        """What is served, one entry per name."""
        return list((await self._call(self._models.ListModels, model_pb2.ListModelsRequest(), timeout)).models)

    async def get_model(self, model: str = "", *, timeout: float | None = None) -> model_pb2.Model:
        """One served model; empty takes the only one."""
        return (await self._call(self._models.GetModel, model_pb2.GetModelRequest(model=model), timeout)).model

    async def _call(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        call = method(request, timeout=self._seconds(timeout), metadata=self._metadata)
        try:
            return await call
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        except asyncio.CancelledError:
            _check_cancelled(call)
            raise

    def _seconds(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout


def _check_cancelled(call: grpc.aio.Call) -> None:
    """gRPC says CancelledError for our task's being cancelled, which goes on, and for the call's, which is an error."""
    if call.cancelled() and not asyncio.current_task().cancelling():
        raise Cancelled("the call was cancelled") from None
