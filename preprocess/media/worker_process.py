"""Owns one process that decodes, seen from outside: started, asked, and killed when it does not answer in time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_SECONDS = 120.0  # until a process answers for the first time, on a machine that may be busy

_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")  # what else there is may be secret
_ROOT = Path(__file__).parents[2]
_MAX_HEADER_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20


class WorkerDied(Exception):
    """The process ended, was late or said what it could not say. `cause` is what a client may know of that."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class WorkerProcess:
    """A preprocess.media.worker. One thread uses it at a time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """`settings` is the worker's argument."""
        self._ready, self._unread = False, bytearray()
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "preprocess.media.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # ^C at a terminal is for the server, which then drains
            env=environment | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._into, self._out_of = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._into, False)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], data: bytes, *, wall_seconds: float) -> tuple[dict[str, Any], bytearray]:
        """Its answer, and the bytes that come with it; raises WorkerDied, after which it cannot be asked again."""
        try:
            if not self._ready:
                self._line(time.monotonic() + START_SECONDS)
                self._ready = True
            deadline = time.monotonic() + wall_seconds
            self._write(json.dumps(request | {"num_bytes": len(data)}).encode() + b"\n", deadline)
            self._write(data, deadline)
            answer = json.loads(self._line(deadline))
            return answer, self._read(answer["num_bytes"], deadline)
        except WorkerDied:
            self.kill()
            raise
        except (OSError, ValueError, KeyError, TypeError):  # a broken pipe, or an answer that is none
            cause = self._cause()
            self.kill()
            raise WorkerDied(cause) from None

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()
        self._process.wait()

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait(self._into, select.POLLOUT, deadline)
            view = view[os.write(self._into, view[:_CHUNK_BYTES]) :]

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._unread:
            if len(self._unread) > _MAX_HEADER_BYTES:
                raise ValueError("no line")
            self._unread += self._some(_CHUNK_BYTES, deadline)
        line, _, self._unread = self._unread.partition(b"\n")
        return bytes(line)

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        found = self._unread[:num_bytes]
        del self._unread[:num_bytes]
        while len(found) < num_bytes:
            found += self._some(min(_CHUNK_BYTES, num_bytes - len(found)), deadline)
        return found

    def _some(self, most_bytes: int, deadline: float) -> bytes:
        self._wait(self._out_of, select.POLLIN, deadline)
        data = os.read(self._out_of, most_bytes)
        if not data:
            raise WorkerDied(self._cause())
        return data

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()  # select() knows no file numbers above 1,023, and a busy server has them
        poll.register(pipe, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise WorkerDied("took too long")

    def _cause(self) -> str:
        try:
            code = self._process.wait(timeout=1.0)  # its pipe has ended, so it has, or is about to
        except subprocess.TimeoutExpired:
            return "broke down"
        return "took too long" if code == -signal.SIGPROF else "broke down"
