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

from forebay.v1 import generation_pb2, generation_pb2_grpc, prompt_pb2, sampling_pb2

MODEL = Path(__file__).parent / "model"
PROMPT = "The with statement is used to"
SERVICE = "forebay.v1.GenerationService"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--prompt", default=PROMPT, help="text to continue (default: %(default)r)")
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: %(default)s)")
    arguments = parser.parse_args()
    executor_port, frontend_port = free_ports(2)
    executor = f"127.0.0.1:{executor_port}"
    server = f"127.0.0.1:{frontend_port}"
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-demo-")))
        started = time.monotonic()
        say(f"executor   forebay executor demo/model --listen {executor}")
        say(f"frontend   forebay frontend demo/model --executors {executor} --port {frontend_port}")
        stack.enter_context(process(logs, "executor", "gpu_executor.main", str(MODEL), "--listen", executor))
        stack.enter_context(
            process(
                logs, "frontend", "frontend.main", str(MODEL), "--executors", executor, "--port", str(frontend_port)
            )
        )
        try:
            channel = stack.enter_context(grpc.insecure_channel(server))
            stream(channel, arguments, started)
        except (grpc.RpcError, grpc.FutureTimeoutError) as error:
            text = (
                f"{error.code().name}: {error.details()}"
                if isinstance(error, grpc.RpcError)
                else "no answer within 60 s"
            )
            print(f"\nthe demo failed: {text}\n", file=sys.stderr)
            for log in sorted(logs.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
            return 1
        say("stopping both …")
    print(f"""
How to go on, in the virtual environment that was just made (source .venv/bin/activate):

  forebay serve demo/model                                              # both tiers, on port 50051
  forebay generate --server 127.0.0.1:50051 "A generator is"
  forebay chat --server 127.0.0.1:50051
  buf curl --http2-prior-knowledge --protocol grpc \\
    -d '{{"prompt": {{"text": "A generator is"}}, "sampling": {{"max_tokens": 32}}}}' \\
    http://127.0.0.1:50051/{SERVICE}/StreamGenerate                # buf: npm install @bufbuild/buf
""")
    return 0


def stream(channel: grpc.Channel, arguments: argparse.Namespace, started: float) -> None:
    """Prints a completion as it comes, then its times."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    request = generation_pb2.StreamGenerateRequest(
        prompt=prompt_pb2.Prompt(text=arguments.prompt),
        sampling=sampling_pb2.SamplingParams(max_tokens=arguments.max_tokens, temperature=arguments.temperature),
    )
    wait_until_serving(channel, timeout_s=60)
    say(f"ready after {time.monotonic() - started:.1f} s\n")
    print(f"\033[1m{arguments.prompt}\033[0m", end="", flush=True)
    sent, first, num_tokens = time.monotonic(), 0.0, 0
    for message in stub.StreamGenerate(request, timeout=60):
        for delta in message.deltas:
            first = first or time.monotonic()
            num_tokens += len(delta.token_ids)
            print(delta.text, end="", flush=True)
    end = time.monotonic()
    rate = (num_tokens - 1) / (end - first) if num_tokens > 1 else 0.0
    print(f"\n\ntime to first token {1e3 * (first - sent):.1f} ms, then {rate:.0f} tokens/s ({num_tokens} tokens)\n")


def wait_until_serving(channel: grpc.Channel, timeout_s: float) -> None:
    """Returns when the frontend's health says SERVING: an executor with the model is connected."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    grpc.channel_ready_future(channel).result(timeout=timeout_s)
    request = health_pb2.HealthCheckRequest(service=SERVICE)
    for status in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=timeout_s):
        if status.status == health_pb2.HealthCheckResponse.SERVING:
            return


@contextlib.contextmanager
def process(logs: Path, name: str, module: str, *arguments: str) -> Iterator[None]:
    """A server in a process of its own, which is asked to end, and drains, on the way out."""
    with (logs / f"{name}.log").open("wb") as log:
        child = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=log, stderr=log)
        try:
            yield
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                status = child.wait(timeout=15)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
            if status:
                print(f"{name} ended with exit status {status}", file=sys.stderr)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


def say(text: str) -> None:
    print(f"\033[2m{text}\033[0m", flush=True)


if __name__ == "__main__":
    sys.exit(main())
