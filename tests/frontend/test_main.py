"""The frontend as a process: it serves a model folder, drains on a signal, and exits with a status that says how."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from tokenizers import Tokenizer

from forebay.errors import EXIT_BAD_CONFIG
from forebay.fingerprint import model_digest, tokenizer_digest
from forebay.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc, prompt_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from forebay.v1.errors_pb2 import ErrorReason
from tests.frontend.fake_executor import FakeExecutor, expected_tokens
from tests.frontend.harness import Stream, client_channel, stream_request
from tests.preprocess.tokenizer_zoo import CHATML, write_folder

ROOT = Path(__file__).parents[2]
START_S = 120.0  # for what takes two seconds on a machine that is not busy


class Process:
    """A frontend process and what it logged."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self, pattern: str) -> re.Match[str]:
        """The next line that matches."""
        async with asyncio.timeout(START_S):
            while data := await self.process.stderr.readline():
                self.lines.append(data.decode())
                if match := re.search(pattern, self.lines[-1]):
                    return match
        raise AssertionError(f"no line {pattern!r} in:\n{''.join(self.lines)}")

    async def ended(self) -> int:
        """The exit status; what is left of the log is read."""
        async with asyncio.timeout(START_S):
            self.lines += (await self.process.stderr.read()).decode().splitlines(keepends=True)
            return await self.process.wait()


@contextlib.asynccontextmanager
async def run(*arguments: str, **environ: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "frontend.main", *arguments, cwd=ROOT, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environ},
    )  # fmt: skip
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny-model", chat_template=CHATML)


@pytest.fixture
async def executor(folder: Path) -> AsyncIterator[FakeExecutor]:
    """One that holds the folder's model."""
    executor = FakeExecutor(
        vocab_size=Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size(),
        max_model_len=200,
        model_digest=model_digest(json.loads((folder / "config.json").read_text())),
        tokenizer_digest=tokenizer_digest(folder),
    )
    await executor.start()
    yield executor
    await executor.kill()


@contextlib.asynccontextmanager
async def serving(
    folder: Path, executor: FakeExecutor, *arguments: str
) -> AsyncIterator[tuple[Process, grpc.aio.Channel]]:
    """A process that has its executor, and a client's connection to it."""
    async with run(str(folder), "--executors", executor.address, "--port", "0", *arguments) as process:
        port = int((await process.line(r"ready on 127\.0\.0\.1:(\d+): "))[1])
        await process.line(r"frontend\.server.*\bserving\b")
        async with client_channel(port) as channel:
            yield process, channel


def stream_on(channel: grpc.aio.Channel, **fields: object) -> Stream:
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    return Stream(stub.StreamGenerate(stream_request("Hello, my name is", **{"seed": 7, "max_tokens": 6, **fields})))


async def test_process_serves_its_folder_and_drains_on_sigterm(folder: Path, executor: FakeExecutor) -> None:
    async with serving(folder, executor, "--served-model-name", "mine,also") as (process, channel):
        names = (await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())).models
        assert [(model.name, model.num_executors, model.has_chat_template) for model in names] == [
            ("also", 1, True), ("mine", 1, True),
        ]  # fmt: skip
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        request = tokenizer_pb2.TokenizeRequest(prompt=prompt_pb2.Prompt(text="Hello, my name is"))
        token_ids = list((await tokenizer_pb2_grpc.TokenizerServiceStub(channel).Tokenize(request)).token_ids)
        assert token_ids == tokenizer.encode("Hello, my name is").ids

        stream = stream_on(channel)
        await executor.saw(lambda: executor.num_aboard == 1)
        assert list(executor.submits[0].prompt_token_ids) == token_ids
        await executor.step(2)
        await stream.read(until_tokens=2)
        process.process.send_signal(signal.SIGTERM)
        await process.line("draining: 1 requests run, 0 wait")
        refused = await stream_on(channel).error()
        assert (refused.code, refused.reason) == ("UNAVAILABLE", ErrorReason.ERROR_REASON_DRAINING)
        await executor.step(4)
        want = expected_tokens(7, 0, 6, executor.vocab_size)
        assert (await stream.read()).token_ids() == want
        assert stream.text() == tokenizer.decode(want)
        assert await process.ended() == 0
        assert "Traceback" not in "".join(process.lines)


async def test_second_signal_ends_the_process_at_once(folder: Path, executor: FakeExecutor) -> None:
    async with serving(folder, executor) as (process, channel):
        stream = stream_on(channel)
        await executor.saw(lambda: executor.num_aboard == 1)
        process.process.send_signal(signal.SIGTERM)
        await process.line("draining: 1 requests run")
        process.process.send_signal(signal.SIGTERM)
        assert await process.ended() == 128 + signal.SIGTERM
        assert (await stream.error()).code == "UNAVAILABLE"
        await executor.saw(lambda: not executor.sessions)


async def test_grace_that_passes_after_ctrl_c_ends_what_runs_and_the_process(
    folder: Path, executor: FakeExecutor
) -> None:
    async with serving(folder, executor, "--drain-grace-s", "0", "--log-format", "json") as (process, channel):
        stream = stream_on(channel)
        await executor.saw(lambda: executor.num_aboard == 1)
        process.process.send_signal(signal.SIGINT)
        error = await stream.error()
        assert (error.code, error.reason) == ("UNAVAILABLE", ErrorReason.ERROR_REASON_DRAINING)
        assert await process.ended() == 0
        assert [json.loads(line)["level"] for line in process.lines]


async def test_bad_settings_end_the_process_with_78_and_one_line(folder: Path) -> None:
    async with run(str(folder), "--executors", "localhost:1", "--port", "99999") as process:
        assert await process.ended() == EXIT_BAD_CONFIG
        assert process.lines == ["forebay frontend: --port is 99999; a port is 0 to 65535\n"]
