"""Shows Forebay at work: an executor and a frontend as two processes on loopback, and one completion streamed from them."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay import Client, ForebayError, SamplingParams

ROOT = Path(__file__).resolve().parents[1]
MODEL = "demo/model"
PROMPT = "The with statement is used to"
SERVICE = "forebay.v1.GenerationService"
START_S = 180.0  # a first start reads all of torch from the disk

NEXT_STEPS = f"""
How to go on, in the virtual environment that was just made (source .venv/bin/activate):

  forebay serve {MODEL}                                              # both tiers, on port 50051
  forebay generate "A generator is"
  forebay chat
  buf curl --http2-prior-knowledge --protocol grpc \\
    -d '{{"prompt": {{"text": "A generator is"}}, "sampling": {{"max_tokens": 32}}}}' \\
    http://127.0.0.1:50051/{SERVICE}/StreamGenerate                # buf: npm install @bufbuild/buf
"""


class DemoFailed(Exception):
    """The demo cannot go on; the servers' logs say why."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="text to continue (default: %(default)r)")
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    arguments = parser.parse_args()
    executor, frontend = (f"127.0.0.1:{port}" for port in free_ports(2))
    with tempfile.TemporaryDirectory(prefix="forebay-demo-") as folder, contextlib.ExitStack() as stack:
        logs, started = Path(folder), time.monotonic()
        try:
            children = [
                stack.enter_context(forebay(logs, "executor", MODEL, "--listen", executor)),
                stack.enter_context(
                    forebay(logs, "frontend", MODEL, "--executors", executor, "--port", frontend.rpartition(":")[2])
                ),
            ]
            wait_until_serving(frontend, children)
            say(f"ready after {time.monotonic() - started:.1f} s\n")
            stream(frontend, arguments)
        except (DemoFailed, ForebayError) as error:
            print(f"\nthe demo failed: {error}\n", file=sys.stderr)
            for log in sorted(logs.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        say("stopping both …")
    print(NEXT_STEPS)
    return 0


def stream(server: str, arguments: argparse.Namespace) -> None:
    """Prints a completion as it comes, then its times."""
    params = SamplingParams(max_tokens=arguments.max_tokens, temperature=arguments.temperature)
    print(styled(1, arguments.prompt), end="", flush=True)
    sent, first, num_tokens = time.monotonic(), 0.0, 0
    with Client(server, timeout=60) as client:
        for delta in client.stream(arguments.prompt, params):
            first = first or time.monotonic()
            num_tokens += len(delta.token_ids)
            print(delta.text, end="", flush=True)
    end = time.monotonic()
    rate = (num_tokens - 1) / (end - first) if num_tokens > 1 else 0.0
    print(f"\n\ntime to first token {1e3 * (first - sent):.1f} ms, then {rate:.0f} tokens/s ({num_tokens} tokens)\n")


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


if __name__ == "__main__":
    sys.exit(main())
