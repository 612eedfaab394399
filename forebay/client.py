"""Owns the blocking client of a frontend. It loads neither torch nor transformers nor numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

__all__ = ["Client", "TextStream", "chat_prompt"]


class TextStream(StreamFacts):
    """The deltas of one request, as they come. Leaving the loop early, or the `with` block, cancels the request."""

    def __init__(self, call: Any, params: SamplingParams) -> None:
        super().__init__(params)
        self._call = call

    def __iter__(self) -> Iterator[TextDelta]:
        """Raises the ForebayError that the request ends with."""
        try:
            for response in self._call:
                yield from self._read(response)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
        finally:
            self._call.cancel()

    def cancel(self) -> None:
        """Ends the request; who iterates gets Cancelled. Does nothing if it has ended."""
        self._call.cancel()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


class Client:
    """A connection to a frontend. Threads may share one; close it, or use `with`.

    `target` is host:port, or a name with several addresses such as dns:///frontends:50051, among which calls are spread.
    `timeout`, in seconds, holds for every call that does not set its own; None waits as long as the server does.
    `metadata` goes with every call. TLS is on with `secure`, or with `root_certificates` (PEM) in place of the system's;
    `private_key` and `certificate_chain` (PEM) identify this side. A call that finds the server unavailable is tried up to
    four times, unless `retry` is False or its answer has begun.

    Every method raises a ForebayError: its type is the gRPC code, `reason_name` says why, `retry_after_ms` when to come back.
    """

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
            self._channel = grpc.insecure_channel(target, settings.options)
        else:
            self._channel = grpc.secure_channel(target, settings.credentials, settings.options)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._pooling = pooling_pb2_grpc.PoolingServiceStub(self._channel)
        self._tokenizer = tokenizer_pb2_grpc.TokenizerServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and ends the calls on it."""
        self._channel.close()

    def generate(
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
        return to_request_output(self._call(self._generation.Generate, request, timeout), message, params)

    def stream(
        self,
        prompt: PromptInput,
        sampling_params: SamplingParams | None = None,
        *,
        model: str = "",
        priority: int = 0,
        request_id: str = "",
        timeout: float | None = None,
    ) -> TextStream:
        """As `generate`, token by token. Errors come while iterating."""
        message, params = to_prompt(prompt), sampling_params or SamplingParams()
        request = generation_request(
            generation_pb2.StreamGenerateRequest, message, params, model=model, priority=priority, request_id=request_id
        )
        return TextStream(self._call(self._generation.StreamGenerate, request, timeout), params)

    def chat(
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
        return self.generate(
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
    ) -> TextStream:
        """As `chat`, token by token. Errors come while iterating."""
        prompt = chat_prompt(
            messages, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
        )
        return self.stream(
            prompt, sampling_params, model=model, priority=priority, request_id=request_id, timeout=timeout
        )

    def embed(
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
        return read_embeddings(self._call(self._pooling.Embed, request, timeout))

    def classify(
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
        return read_classes(self._call(self._pooling.Classify, request, timeout))

    def score(
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
        return read_scores(self._call(self._pooling.Score, request, timeout))

    def reward(
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
        return read_rewards(self._call(self._pooling.Reward, request, timeout))

    def tokenize(
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
        return list(self._call(self._tokenizer.Tokenize, request, timeout).token_ids)

    def detokenize(
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
        return self._call(self._tokenizer.Detokenize, request, timeout).text

    def render_chat(
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
        response = self._call(self._tokenizer.RenderChat, request, timeout)
        return RenderedChat(response.text, list(response.token_ids))

    def list_models(self, *, timeout: float | None = None) -> list[model_pb2.Model]:
        """What is served, one entry per name."""
        return list(self._call(self._models.ListModels, model_pb2.ListModelsRequest(), timeout).models)

    def get_model(self, model: str = "", *, timeout: float | None = None) -> model_pb2.Model:
        """One served model; empty takes the only one."""
        return self._call(self._models.GetModel, model_pb2.GetModelRequest(model=model), timeout).model

    def _call(self, method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
        timeout = self._timeout if timeout is None else timeout
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None
