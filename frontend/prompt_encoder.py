"""Owns where prompts become ids: text in this process, prompts with media here too or at preprocess services."""

from __future__ import annotations

from forebay.v1 import prompt_pb2
from frontend.dispatcher import ModelFacts
from frontend.preprocess_client import PreprocessClient
from preprocess.ready_prompt import ReadyPrompt
from preprocess.threads import PreprocessThreads, has_media


class PromptEncoder:
    """Encodes prompts beside the event loop. Without `services`, media is decoded in processes of this frontend."""

    def __init__(self, threads: PreprocessThreads, services: PreprocessClient | None = None) -> None:
        self.threads, self._services = threads, services

    async def encode(
        self, prompt: prompt_pb2.Prompt, facts: ModelFacts, *, max_tokens: int | None = None, cut: int | None = None
    ) -> ReadyPrompt:
        """The prompt as executors take it, cut to its last `cut` tokens.

        Text that must become more than `max_tokens` is refused before it is tokenized. Raises what Preprocessor does.
        """
        if has_media(prompt):
            return await self._encode_media(prompt, facts, max_tokens, cut)
        preprocessor = self.threads.preprocessor
        if prompt.WhichOneof("kind") == "token_ids":
            token_ids = preprocessor.encode(prompt)  # nothing to compute
        else:
            token_ids = await self.threads.run(preprocessor.encode, prompt, max_tokens=max_tokens)
        return ReadyPrompt(token_ids if cut is None else token_ids[-cut:])

    def serves_elsewhere(self, prompt: prompt_pb2.Prompt) -> bool:
        """Whether a preprocess service encodes this prompt."""
        return self._services is not None and has_media(prompt)

    async def _encode_media(
        self, prompt: prompt_pb2.Prompt, facts: ModelFacts, max_tokens: int | None, cut: int | None
    ) -> ReadyPrompt:
        if self._services is not None:
            return await self._services.encode(prompt, max_tokens=max_tokens, cut=cut, dtype=facts.dtype)

        def encode() -> ReadyPrompt:
            encoded = self.threads.preprocessor.encode_prompt(prompt, max_tokens=max_tokens).end(cut)
            return ReadyPrompt.of(encoded, facts.float_dtype)

        return await self.threads.run_on(prompt, encode)
