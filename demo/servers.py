"""Owns the servers of the demos: an executor and a frontend as two processes on loopback, from their start to their end."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay import ForebayError

ROOT = Path(__file__).resolve().parents[1]
SERVICE = "forebay.v1.GenerationService"
START_S = 180.0  # a first start reads all of torch from the disk


class DemoFailed(Exception):
    """The demo cannot go on; the servers' logs say why."""


def run_demo(model: str, show: Callable[[str], None], *, link: Callable[[str], str] = str) -> int:
    """Starts both tiers with a model, calls `show` with the frontend's address, and stops them; gives the exit status.

    `link` gives the address under which the frontend reaches the executor at an address.
    """
    executor, frontend = (f"127.0.0.1:{port}" for port in free_ports(2))
    with tempfile.TemporaryDirectory(prefix="forebay-demo-") as folder, contextlib.ExitStack() as stack:
        logs, started = Path(folder), time.monotonic()
        try:
            children = [
                stack.enter_context(forebay(logs, "executor", model, "--listen", executor)),
                stack.enter_context(
                    forebay(
                        logs, "frontend", model, "--executors", link(executor), "--port", frontend.rpartition(":")[2]
                    )
                ),
            ]
            wait_until_serving(frontend, children)
            say(f"ready after {time.monotonic() - started:.1f} s\n")
            show(frontend)
        except (DemoFailed, ForebayError) as error:
            print(f"\nthe demo failed: {error}\n", file=sys.stderr)
            for log in sorted(logs.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        say("stopping both …")
    return 0


def wait_until_serving(server: str, children: list[subprocess.Popen[bytes]]) -> None:
    """Returns when the frontend's health says SERVING: an executor with the model is connected. Raises DemoFailed."""
    options = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
    request, deadline = health_pb2.HealthCheckRequest(service=SERVICE), time.monotonic() + START_S
    with grpc.insecure_channel(server, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < deadline:
            with contextlib.suppress(grpc.RpcError):  # a second without news: look whether both are still alive
                for answer in stub.Watch(request, timeout=1, wait_for_ready=True):
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            if any(child.poll() is not None for child in children):
                raise DemoFailed("a server ended before it served")
    raise DemoFailed(f"the servers were not ready within {START_S:.0f} s")


@contextlib.contextmanager
def forebay(logs: Path, verb: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, which is asked to end, and drains, on the way out."""
    say(f"{verb:8}   forebay {' '.join((verb, *arguments))}")
    with (logs / f"{verb}.log").open("wb") as log:
        # In a session of its own: Ctrl-C is for the demo, which then stops both.
        child = subprocess.Popen(
            [sys.executable, "-m", "forebay", verb, *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                status = child.wait(timeout=15)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
            if status:
                print(f"the {verb} ended with exit status {status}", file=sys.stderr)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def say(text: str) -> None:
    print(styled(2, text), flush=True)


def styled(code: int, text: str) -> str:
    """Bold (1) or faint (2) where that can be shown."""
    return f"\033[{code}m{text}\033[0m" if sys.stdout.isatty() else text
