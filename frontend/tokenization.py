"""Owns TokenizerService: ids of prompts, text of ids, chats as the model reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from forebay.errors import InvalidRequest
from forebay.v1 import prompt_pb2
from forebay.v1 import tokenizer_pb2 as api
from forebay.v1.errors_pb2 import ErrorReason
from frontend.dispatcher import Dispatcher
from frontend.model_catalogue import ServedModel
from preprocess.threads import PreprocessThreads


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
