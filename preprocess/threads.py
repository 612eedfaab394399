"""Owns the threads that tokenize, render chats and make tensors of media beside an event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from forebay.errors import ResourceExhausted
from forebay.v1 import prompt_pb2

T = TypeVar("T")

BUSY_RETRY_MS = 200


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
