"""Owns servers as processes of their own, for tests: started on free ports, watched by their health, ended for sure."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.executor.v1 import executor_pb2 as wire
from forebay.executor.v1 import executor_pb2_grpc

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "demo" / "model"
WAIT_S = 120.0  # for what takes a second on a machine that is not busy
SERVING = health_pb2.HealthCheckResponse.SERVING
GENERATION, EXECUTOR = "forebay.v1.GenerationService", "forebay.executor.v1.ExecutorService"

# One thread each: tests run side by side, and threads that wait for each other on few cores wait long.
EXECUTOR_FLAGS = ("--dtype", "float32", "--num-threads", "1", "--kv-cache-memory-bytes", str(64 << 20))


class Server:
    """A process of `forebay`, whose output is kept."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "forebay", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self._printed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._printed:
                self.lines.append(line)
                self._printed.notify_all()
        with self._printed:
            self._ended = True
            self._printed.notify_all()

    def line(self, beginning: str) -> str:
        """The first line that begins so, once it is printed."""

        def found() -> str | None:
            return next((line for line in self.lines if line.startswith(beginning)), None)

        with self._printed:
            self._printed.wait_for(lambda: found() is not None or self._ended, WAIT_S)
        line = found()
        assert line is not None, f"no line began with {beginning!r}:\n{self.log}"
        return line

    @property
    def log(self) -> str:
        """What was printed up to now."""
        return "".join(self.lines)

    @property
    def children(self) -> dict[str, int]:
        """The processes that `forebay serve` has started, by verb."""
        found = {}
        listing = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)], capture_output=True, text=True, check=True
        )
        for line in listing.stdout.splitlines():
            pid, *words = line.split()
            found[words[words.index("forebay") + 1]] = int(pid)
        return found

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status, when the process has ended and all that it printed is read."""
        status = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return status

    def close(self) -> None:
        """Ends the process and what it has started, however it is."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                for pid in (*self.children.values(), self.process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.process.wait()
        self._reader.join(5)


@contextlib.contextmanager
def executor(*flags: str) -> Iterator[tuple[Server, str]]:
    """An executor with the embedded model, once it serves, and its address."""
    address = f"127.0.0.1:{free_port()}"
    with running("executor", str(MODEL), "--listen", address, *EXECUTOR_FLAGS, *flags) as server:
        wait_until_serving(address, EXECUTOR, server)
        yield server, address


@contextlib.contextmanager
def frontend(*executors: str, flags: tuple[str, ...] = ()) -> Iterator[tuple[Server, str]]:
    """A frontend of these executors, once it serves, and its address."""
    port = free_port()
    command = ("frontend", str(MODEL), "--executors", ",".join(executors), "--port", str(port), *flags)
    with running(*command) as server:
        wait_until_serving(f"127.0.0.1:{port}", GENERATION, server)
        yield server, f"127.0.0.1:{port}"


@contextlib.contextmanager
def serve(*flags: str, model: Path = MODEL) -> Iterator[tuple[Server, str, str]]:
    """`forebay serve` with a model, once it says that it is ready; the addresses of frontend and executor."""
    executor_address = f"127.0.0.1:{free_port()}"
    command = ("serve", str(model), "--port", "0", "--listen", executor_address, *EXECUTOR_FLAGS, *flags)
    with running(*command) as server:
        address = server.line("ready: ").split(" on ")[1].partition(";")[0]
        yield server, address, executor_address


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Server]:
    server = Server(*arguments)
    try:
        yield server
    finally:
        server.close()


def wait_until_serving(address: str, service: str, server: Server) -> None:
    """Returns when the health service at the address says SERVING."""
    options = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))
    with grpc.insecure_channel(address, options) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        watching = health_pb2_grpc.HealthStub(channel).Watch(request, wait_for_ready=True, timeout=WAIT_S)
        try:
            assert any(answer.status == SERVING for answer in watching)
        except grpc.RpcError as error:
            raise AssertionError(f"{address} does not serve: {error.details()}\n{server.log}") from None


def load_of(address: str) -> wire.Load:
    """How busy an executor is, as it tells every new session."""
    with grpc.insecure_channel(address) as channel:
        over = threading.Event()

        def requests() -> Iterator[wire.SessionRequest]:
            yield wire.SessionRequest(hello=wire.Hello(frontend_id="probe"))
            over.wait(WAIT_S)

        session = executor_pb2_grpc.ExecutorServiceStub(channel).Session(requests(), timeout=WAIT_S)
        try:
            return next(message.step.load for message in session if message.WhichOneof("kind") == "step")
        finally:
            over.set()
            session.cancel()


def until(condition: Callable[[], bool]) -> None:
    """Asks again and again, where nothing says when; what is asked waits for an answer each time."""
    deadline = threading.Event()
    timer = threading.Timer(WAIT_S, deadline.set)
    timer.start()
    try:
        while not condition():
            assert not deadline.is_set(), "the condition did not come to hold"
    finally:
        timer.cancel()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
