"""Owns `forebay serve`: both tiers as two processes on this machine, started, watched and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

import forebay
from forebay.aio_client import AsyncClient
from forebay.cli.parser import VerbParser
from forebay.flags import ConfigError, add_flags, check_file_keys, read_config
from forebay.hub import resolve_model
from forebay.v1.model_pb2 import ModelTask

DESCRIPTION = """\
Serves a model on this machine: an executor on loopback and a frontend before it, as two processes.

Takes every flag of `forebay executor` and `forebay frontend`. SIGTERM or Ctrl-C drains: what runs finishes, the frontend
ends, then the executor; a second signal ends both at once. If either tier ends, so does the other."""

SERVICE = "forebay.v1.ModelService"
_EXAMPLES = {
    ModelTask.MODEL_TASK_GENERATE: ("generate", '"Once upon a time"'),
    ModelTask.MODEL_TASK_EMBED: ("embed", '"Once upon a time"'),
    ModelTask.MODEL_TASK_CLASSIFY: ("classify", '"I like it"'),
    ModelTask.MODEL_TASK_SCORE: ("score", '"What is a forebay?" "The basin that feeds a turbine."'),
    ModelTask.MODEL_TASK_REWARD: ("reward", '"Two and two is four."'),
}


def main(arguments: Sequence[str]) -> int:
    """The exit status: that of the tier that ended first. Raises ConfigError or ForebayError before anything is started."""
    from frontend.config import FrontendConfig
    from gpu_executor.config import ExecutorConfig

    parser = VerbParser("serve", DESCRIPTION)
    add_flags(parser, FrontendConfig, ExecutorConfig)
    parsed = parser.parse_args(arguments)
    check_file_keys(parsed, FrontendConfig, ExecutorConfig)
    if hasattr(parsed, "executors"):
        raise ConfigError(
            "--executors: `forebay serve` starts its own; use `forebay frontend` with executors elsewhere"
        )
    executor = read_config(ExecutorConfig, parsed)
    port = executor.listen.rpartition(":")[2]
    if (not hasattr(parsed, "listen") and executor.listen == _default(ExecutorConfig, "listen")) or port == "0":
        executor = dataclasses.replace(executor, listen=f"127.0.0.1:{free_port()}")  # nobody else dials it
    parsed.executors = _dialled(executor.listen)
    frontend = read_config(FrontendConfig, parsed)
    # Wrong names are told here, once; what is downloaded for this, the tiers find in the cache.
    resolve_model(frontend.model, revision=frontend.revision, download_dir=frontend.download_dir, weights=False)
    try:
        frontend = dataclasses.replace(frontend, port=free_port(frontend.host, frontend.port))
    except OSError as error:  # somebody else there would answer for our frontend
        where = f"{frontend.host}:{frontend.port}"
        raise ConfigError(f"cannot listen on {where}: {error.strerror}; choose another --host or --port") from None
    return asyncio.run(Pair(executor, frontend).run())


class Pair:
    """An executor and a frontend, each in a process of its own."""

    def __init__(self, executor: Any, frontend: Any) -> None:
        """The configs of both; the frontend's `executors` is where the executor listens."""
        host = f"[{frontend.host}]" if ":" in frontend.host else frontend.host
        self._address = _dialled(f"{host}:{frontend.port}")
        self._executor_address, self._model = frontend.executors, frontend.model
        environment = _environment(executor, frontend)
        self._commands = {
            "executor": (_command("executor", executor.model, "--listen", executor.listen), environment(executor)),
            "frontend": (
                _command("frontend", frontend.model, "--executors", frontend.executors, "--port", str(frontend.port)),
                environment(frontend),
            ),
        }
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._ends: dict[str, asyncio.Task[int]] = {}
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Serves until a signal comes or either tier ends; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        try:
            await self._start("executor")
            # The frontend is started once there is somebody to connect to, and reads its files while the weights load.
            if await self._first(_health(self._executor_address, "")):
                await self._start("frontend")
                if await self._first(_health(self._address, SERVICE, serving=True)):
                    print(f"ready: {self._model} on {self._address}; try", flush=True)
                    print(f"  {await self._example()}", flush=True)
                    await self._first(asyncio.Event().wait())
            return await self._shut_down()
        finally:
            self._signal_all(signal.SIGKILL)

    async def _example(self) -> str:
        """A command that the model can answer."""
        async with AsyncClient(self._address, timeout=10.0) as client:
            (task, *_) = (await client.get_model()).tasks
        verb, words = _EXAMPLES[task]
        return f"forebay {verb} --server {self._address} {words}"

    async def _start(self, name: str) -> None:
        command, environment = self._commands[name]
        # In a group of its own, so that Ctrl-C reaches this process alone and the tiers drain in order.
        process = await asyncio.create_subprocess_exec(*command, env=environment, process_group=0)
        self._processes[name] = process
        self._ends[name] = asyncio.create_task(process.wait())

    async def _first(self, awaited: Coroutine[Any, Any, object]) -> bool:
        """Waits; whether it came before a signal and before the end of either tier."""
        task, stop = asyncio.create_task(awaited), asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stop, *self._ends.values()}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done() or any(end.done() for end in self._ends.values()):
                return False
            task.result()  # raises what it raised
            return True
        finally:
            task.cancel()
            stop.cancel()

    async def _shut_down(self) -> int:
        """Ends what still runs; the exit status of the tier that ended by itself, else of any that ended badly."""
        ended = [name for name, end in self._ends.items() if end.done()]
        for name in ended if not self._stop.is_set() else ():
            status = _status(self._ends[name].result())
            print(f"forebay serve: the {name} ended with exit status {status}; so does this", file=sys.stderr)
        # The frontend first: what it still runs needs the executor.
        for name in ("frontend", "executor"):
            if name in self._ends:
                if not self._ends[name].done():
                    self._processes[name].send_signal(signal.SIGTERM)
                await self._ends[name]
        order = [*ended, *(name for name in self._ends if name not in ended)]
        return next((status for name in order if (status := _status(self._ends[name].result()))), 0)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._signal_all(signal.SIGTERM)
        self._stop.set()

    def _signal_all(self, number: int) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)


async def _health(address: str, service: str, *, serving: bool = False) -> None:
    """Returns when the server at this address says how it is, or, with `serving`, that it serves."""
    options = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        stub, request = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckRequest(service=service)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):  # it went away: whoever watches the process decides
                async for answer in stub.Watch(request, wait_for_ready=True):
                    if not serving or answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            await asyncio.sleep(0.1)


def _command(verb: str, model: str, *flags: str) -> list[str]:
    # -P: a folder named frontend, wherever this is run, must not be taken for ours.
    return [sys.executable, "-P", "-m", "forebay", verb, model, *flags]


def _environment(*configs: Any) -> Callable[[Any], Mapping[str, str]]:
    """Gives each tier's environment: every setting of its config, and none of the variables that they came from."""
    of_settings = {_variable(field.name) for config in configs for field in dataclasses.fields(config)}
    inherited = {name: value for name, value in os.environ.items() if name not in of_settings}
    root = str(Path(forebay.__file__).parent.parent)
    inherited["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [inherited.get("PYTHONPATH")])])

    def of(config: Any) -> Mapping[str, str]:
        values = ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
        return inherited | {_variable(name): _spelled(value) for name, value in values if value is not None}

    return of


def _variable(name: str) -> str:
    return f"FOREBAY_{name.upper()}"


def _spelled(value: Any) -> str:
    """A setting as forebay.flags reads it from a variable."""
    if isinstance(value, tuple):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, (bool, dict)) else str(value)


def _status(returncode: int) -> int:
    """The exit status of a child, by a shell's convention where a signal ended it."""
    return returncode if returncode >= 0 else 128 - returncode


def _dialled(listen: str) -> str:
    """The address at which this machine reaches a listener on it."""
    host, _, port = listen.rpartition(":")
    return f"{({'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}).get(host, host)}:{port}"


def _default(config: type, name: str) -> object:
    return next(field.default for field in dataclasses.fields(config) if field.name == name)


def free_port(host: str = "127.0.0.1", port: int = 0) -> int:
    """A port that nobody listens on now, or the one given; raises OSError if somebody does, or the address is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        return listener.getsockname()[1]
