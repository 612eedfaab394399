"""Owns rendering of chat templates under limits: in a worker process that is killed when one costs too much."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from forebay.errors import FailedPrecondition, ForebayError
from forebay.v1.errors_pb2 import ErrorReason

CPU_SECONDS = 2.0  # usual templates take less than a millisecond
WALL_SECONDS = 15.0  # for a worker that neither computes nor answers, on a machine that may be busy
START_SECONDS = 120.0
MAX_CHARS = 16 << 20

_WORKER = Path(__file__).with_name("template_worker.py")


class TemplateTooCostly(FailedPrecondition):
    """The template ran out of time, memory or room for its output."""

    default_reason = ErrorReason.ERROR_REASON_CHAT_TEMPLATE


class TemplateSyntaxError(FailedPrecondition):
    """The template is not one that Jinja can compile."""

    default_reason = ErrorReason.ERROR_REASON_CHAT_TEMPLATE


class TemplateRenderer:
    """Renders templates in a worker process, one at a time. Threads may share one."""

    def __init__(self, *, cpu_seconds: float = CPU_SECONDS, wall_seconds: float = WALL_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()
        self._ready = False
        self._unread = b""

    def start(self) -> None:
        """Starts the worker, without waiting for it, so that it is up when the first template comes."""
        with self._lock:
            self._ensure_started()

    def render(
        self,
        template: str,
        messages: list[dict[str, Any]],
        *,
        named_tokens: dict[str, str],
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        """What the template gives; raises FailedPrecondition (CHAT_TEMPLATE) where it gives nothing."""
        request = {
            "template": template, "messages": messages, "named_tokens": named_tokens,
            "add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message,
            "cpu_seconds": self._cpu_seconds, "max_chars": MAX_CHARS,
        }  # fmt: skip
        with self._lock:
            answer = self._ask(request)
        if "text" in answer:
            return answer["text"]
        raise _error_of(answer["error"], answer["message"])

    def close(self) -> None:
        """Ends the worker; the next render starts another."""
        with self._lock:
            self._stop()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        worker = self._ensure_started()
        try:
            if not self._ready:
                if self._read_line(START_SECONDS) is None:
                    raise ForebayError("the process that runs chat templates does not start")
                self._ready = True
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(request).encode() + b"\n")
            worker.stdin.flush()
            line = self._read_line(self._wall_seconds)
        except BrokenPipeError:
            line = None
        if line is None:
            self._stop()
            return {"error": "cost", "message": f"it takes longer than {self._cpu_seconds:g} s"}
        return json.loads(line)

    def _read_line(self, timeout_seconds: float) -> bytes | None:
        """The worker's next line; None if it died or is late."""
        assert self._worker is not None and self._worker.stdout is not None
        pipe, deadline, parts = self._worker.stdout.fileno(), time.monotonic() + timeout_seconds, [self._unread]
        poll = select.poll()  # select() knows no file numbers above 1,023, and a busy server has them
        poll.register(pipe, select.POLLIN)
        while b"\n" not in parts[-1]:
            readable = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            data = os.read(pipe, 1 << 16) if readable else b""
            if not data:
                return None
            parts.append(data)
        line, _, self._unread = b"".join(parts).partition(b"\n")
        return line

    def _ensure_started(self) -> subprocess.Popen[bytes]:
        if self._owner_pid != os.getpid():  # after a fork the worker is the other process's
            self._worker, self._owner_pid = None, os.getpid()
        if self._worker is None or self._worker.poll() is not None:
            self._ready, self._unread = False, b""
            self._worker = subprocess.Popen(  # -P: the modules beside the script are not for it
                [sys.executable, "-P", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # ^C at a terminal is for the server, which then drains
                env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._worker

    def _stop(self) -> None:
        if self._worker is not None and self._owner_pid == os.getpid():
            self._worker.kill()
            for pipe in (self._worker.stdin, self._worker.stdout):
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # the request that it never read
            self._worker.wait()
        self._worker = None


def _error_of(kind: str, message: str) -> FailedPrecondition:
    words = "".join(c if c.isprintable() else " " for c in message)[:300]
    if kind == "cost":
        return TemplateTooCostly(f"the model's chat template is refused: {words}")
    if kind == "syntax":
        return TemplateSyntaxError(f"the model's chat template cannot be compiled: {words}")
    return FailedPrecondition(
        f"the model's chat template refuses these messages: {words}", ErrorReason.ERROR_REASON_CHAT_TEMPLATE
    )


_shared: TemplateRenderer | None = None
_shared_lock = threading.Lock()


def shared_renderer() -> TemplateRenderer:
    """The process's one renderer, its worker started."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = TemplateRenderer()
            atexit.register(_shared.close)
        _shared.start()
        return _shared
