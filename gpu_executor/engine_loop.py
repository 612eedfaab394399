"""Owns the thread that steps the engine: commands go in, outputs come out on the event loop, nothing else is shared."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable

from forebay.errors import ForebayError
from gpu_executor.engine import Engine, StepOutput
from gpu_executor.request import Request

logger = logging.getLogger(__name__)

_IDLE_S = 0.25  # how often deadlines are looked at while nothing runs


class EngineLoop:
    """Runs an engine in a thread of its own. All methods are called on the event loop's thread.

    `on_step` gets every step's output, in order; `on_death` the exception that ended the thread. Commands are carried
    out between steps, so an abort frees its blocks within one step.
    """

    def __init__(
        self, engine: Engine, on_step: Callable[[StepOutput], None], on_death: Callable[[BaseException], None]
    ) -> None:
        self.engine = engine
        self._on_step, self._on_death = on_step, on_death
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_result: Callable[[ForebayError | None], None]) -> None:
        """Hands a request to the engine; `on_result` is told None, or why it was refused."""

        def add() -> None:
            try:
                self.engine.add(request)
            except ForebayError as error:
                self._tell(on_result, error)
            else:
                self._tell(on_result, None)

        self._command(add)

    def abort(
        self, key: Hashable, sequence_index: int | None, on_result: Callable[[bool, bool], None] | None = None
    ) -> None:
        """Ends a request or one of its sequences; `on_result` is told whether it was running, and whether it is gone."""

        def abort() -> None:
            ended = self.engine.abort(key, sequence_index)
            if on_result is not None:
                self._tell(on_result, ended, key not in self.engine.requests)

        self._command(abort)

    def call(self, function: Callable[[Engine], object], on_result: Callable[..., None]) -> None:
        """Runs a function on the engine between two steps and hands back what it gives."""
        self._command(lambda: self._tell(on_result, function(self.engine)))

    async def stop(self) -> None:
        """Ends the thread after the step that runs."""
        self._stopping = True
        with self._wake:
            self._wake.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _command(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._stopping = True

    def _run(self) -> None:
        try:
            while not self._stopping:
                with self._wake:
                    if not self._commands and not self.engine.has_work:
                        self._wake.wait(_IDLE_S)
                while self._commands:
                    self._commands.popleft()()
                if self.engine.has_work:
                    self._tell(self._on_step, self.engine.step())
        except BaseException as error:
            logger.critical("the engine failed; the process ends", exc_info=error)
            self._tell(self._on_death, error)
