"""Pooled rows on the wire: packed, in order, in frames of bounded size; and what a session is told of the model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from forebay.executor.v1 import executor_pb2 as wire
from forebay.executor.v1 import executor_pb2_grpc
from forebay.v1 import model_pb2 as model
from forebay.v1.errors_pb2 import ErrorReason
from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine
from gpu_executor.request import PoolingParams
from gpu_executor.service import ExecutorServer
from gpu_executor.startup import build_engine
from tests.gpu_executor.models.checkpoints import tiny_checkpoint
from tests.gpu_executor.models.pooling_cases import CLASSIFY, EMBED
from tests.gpu_executor.models.pooling_run import engine_of, pool

TIMEOUT = 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    cases = {case.name: case for case in (*EMBED, *CLASSIFY) if case.name in ("bert", "llama-base", "bert-one-label")}
    for name, case in cases.items():
        tiny_checkpoint(case, folder / name)
    return {name: folder / name for name in cases}


@contextlib.asynccontextmanager
async def session(folder: Path, **options: Any) -> AsyncIterator[tuple[Any, wire.Welcome, Engine]]:
    config = ExecutorConfig(
        model=str(folder),
        dtype="float32",
        kv_cache_memory_bytes=1 << 23,
        num_threads=1,
        listen="127.0.0.1:0",
        **options,
    )
    engine, info = build_engine(config, progress=False)
    server = ExecutorServer(config)
    await server.listen()
    await server.serve(engine, info)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = executor_pb2_grpc.ExecutorServiceStub(channel).Session()
        await call.write(wire.SessionRequest(hello=wire.Hello(frontend_id="test", fingerprint=wire.Fingerprint())))
        welcome = await asyncio.wait_for(call.read(), TIMEOUT)
        yield call, welcome.welcome, engine
    await server.drain(0)


async def submit(call: Any, handle: int, prompt: list[int], **fields: Any) -> None:
    await call.write(wire.SessionRequest(submit=wire.Submit(handle=handle, epoch=3, prompt_token_ids=prompt, **fields)))


async def rejection(call: Any) -> wire.Rejected:
    while True:
        message = await asyncio.wait_for(call.read(), TIMEOUT)
        if message.WhichOneof("kind") == "rejected":
            return message.rejected


async def collect(call: Any, num_requests: int) -> tuple[dict[int, np.ndarray], list[wire.StepFrame]]:
    """The rows of each request, and the frames that they came in; holds that rows come in order."""
    rows: dict[int, list[np.ndarray]] = {}
    frames, ended = [], 0
    while ended < num_requests:
        message = await asyncio.wait_for(call.read(), TIMEOUT)
        assert message.WhichOneof("kind") in ("accepted", "step")
        frames.append(message.step)
        for part in message.step.pooled:
            mine = rows.setdefault(part.handle, [])
            assert (part.epoch, part.first_row) == (3, sum(map(len, mine)))
            mine.append(np.frombuffer(part.values, "<f4").reshape(part.num_rows, part.num_columns))
            ended += part.finished
    return {handle: np.concatenate(parts) for handle, parts in rows.items()}, frames


async def test_an_embedding_is_one_packed_row(folders: dict[str, Path]) -> None:
    prompts, types = [[5, 6, 7, 8], [9, 10]], [[0, 0, 1, 1], [0, 1]]
    params = [PoolingParams("embed", token_type_ids=tuple(ids), dimensions=12) for ids in types]
    wanted = pool(engine_of(folders["bert"]), prompts, params)
    async with session(folders["bert"]) as (call, welcome, engine):
        assert list(welcome.tasks) == [model.MODEL_TASK_EMBED]
        assert (welcome.embedding_size, welcome.num_classes, welcome.num_token_types) == (48, 0, 2)
        assert not welcome.prefix_caching
        for handle, (prompt, ids) in enumerate(zip(prompts, types, strict=True)):
            pooling = wire.PoolingParams(task=model.MODEL_TASK_EMBED, token_type_ids=ids, dimensions=12)
            await submit(call, handle, prompt, pooling=pooling)
        rows, _ = await collect(call, 2)
        assert not engine.has_work
    for handle, expected in enumerate(wanted):
        np.testing.assert_allclose(rows[handle], expected, atol=1e-6)


async def test_many_rows_come_in_frames_of_bounded_size(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_executor.outputs._MOST_POOLED_BYTES", 4096)
    prompts = [[5 + i % 90 for i in range(length)] for length in (200, 1, 100)]
    wanted = pool(engine_of(folders["llama-base"], task="reward"), prompts, PoolingParams("reward"))
    async with session(folders["llama-base"], task="reward") as (call, welcome, _):
        assert list(welcome.tasks) == [model.MODEL_TASK_REWARD] and welcome.num_classes == 48
        for handle, prompt in enumerate(prompts):
            await submit(call, handle, prompt, pooling=wire.PoolingParams(task=model.MODEL_TASK_REWARD))
        rows, frames = await collect(call, 3)
    assert max(sum(len(part.values) for part in frame.pooled) for frame in frames) <= 4096
    assert all(frame.step > 0 for frame in frames if frame.pooled)
    for handle, expected in enumerate(wanted):
        np.testing.assert_allclose(rows[handle], expected, atol=1e-4)


async def test_classes_and_scores_are_served_together(folders: dict[str, Path]) -> None:
    async with session(folders["bert-one-label"]) as (call, welcome, _):
        assert set(welcome.tasks) == {model.MODEL_TASK_CLASSIFY, model.MODEL_TASK_SCORE}
        assert (welcome.embedding_size, welcome.num_classes) == (0, 1)
        for handle, task in enumerate((model.MODEL_TASK_CLASSIFY, model.MODEL_TASK_SCORE)):
            await submit(call, handle, [5, 6, 7], pooling=wire.PoolingParams(task=task))
        rows, _ = await collect(call, 2)
    assert rows[0].item() == pytest.approx(rows[1].item(), abs=1e-6) and 0 < rows[0].item() < 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": wire.PoolingParams()}, "0 is not the number of a task that pools"),
        ({"pooling": wire.PoolingParams(task=99)}, "99 is not the number of a task that pools"),
        ({"pooling": wire.PoolingParams(task=model.MODEL_TASK_EMBED), "resumed": [wire.ResumedSequence(token_ids=[5])]},
         "cannot be resumed"),
        ({"pooling": wire.PoolingParams(task=model.MODEL_TASK_REWARD)}, "serves embed, not reward"),
        ({"sampling": wire.SamplingParams(max_tokens=4)}, "serves embed, not generate"),
    ],
    ids=["no-task", "unknown-task", "resumed", "another-task", "to-generate"],
)  # fmt: skip
async def test_what_cannot_be_pooled_is_rejected_and_the_session_goes_on(
    folders: dict[str, Path], fields: dict[str, Any], message: str
) -> None:
    async with session(folders["bert"]) as (call, _, _):
        await submit(call, 0, [5, 6], **fields)
        rejected = await rejection(call)
        assert message in rejected.message
        assert rejected.reason in (ErrorReason.ERROR_REASON_INVALID_FIELD, ErrorReason.ERROR_REASON_NOT_OFFERED)
        await submit(call, 1, [5, 6], pooling=wire.PoolingParams(task=model.MODEL_TASK_EMBED))
        assert (await collect(call, 1))[0][1].shape == (1, 48)
