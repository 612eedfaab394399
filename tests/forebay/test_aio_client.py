"""The asyncio client against a real frontend. What it shares with the blocking one is tested there."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from forebay import AsyncClient, AsyncTextStream, Client, SamplingParams, TextDelta
from forebay.errors import Cancelled, DeadlineExceeded, FailedPrecondition, InvalidRequest, NotFound, ResourceExhausted
from tests.frontend.doubles import text_of
from tests.frontend.fake_executor import WAIT_S, FakeExecutor, expected_tokens
from tests.frontend.harness import tier

LONG = SamplingParams(max_tokens=1000)


async def _first(stream: AsyncTextStream) -> TextDelta:
    async for delta in stream:
        return delta
    raise AssertionError("nothing came")


def client_of(up: Any, **options: Any) -> AsyncClient:
    return AsyncClient(f"127.0.0.1:{up.port}", **{"timeout": 10.0, **options})


def test_both_clients_take_the_same_arguments() -> None:
    names = [name for name in dir(Client) if not name.startswith("_")]
    assert names == [name for name in dir(AsyncClient) if not name.startswith("_")]
    for name in ("__init__", *names):
        ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (Client, AsyncClient))
        assert ours == theirs, name


async def test_generate_and_stream_give_the_same() -> None:
    params = SamplingParams(n=2, max_tokens=5, seed=3, logprobs=0, prompt_logprobs=0)
    async with tier() as up, client_of(up) as client:
        output = await client.generate("hello", params, request_id="mine")
        stream = client.stream("hello", params)
        deltas = [delta async for delta in stream]
    assert output.request_id == "mine" and output.seed == stream.seed == 3
    assert output.prompt_logprobs == stream.prompt_logprobs and len(stream.prompt_logprobs) == 5
    assert stream.num_completion_tokens == 10
    for index, sequence in enumerate(output.outputs):
        mine = [delta for delta in deltas if delta.index == index]
        assert sequence.token_ids == expected_tokens(3, index, 5) == [i for delta in mine for i in delta.token_ids]
        assert sequence.text == text_of(sequence.token_ids) == "".join(delta.text for delta in mine)
        assert sequence.logprobs == [entry for delta in mine for entry in delta.logprobs]


async def test_many_streams_run_at_once() -> None:
    async def read(client: AsyncClient, seed: int) -> list[int]:
        stream = client.stream("x", SamplingParams(max_tokens=20, seed=seed))
        return [token_id async for delta in stream for token_id in delta.token_ids]

    async with tier() as up, client_of(up) as client:
        results = await asyncio.gather(*(read(client, seed) for seed in range(32)))
    assert results == [expected_tokens(seed, 0, 20) for seed in range(32)]


async def test_leaving_a_stream_early_cancels_the_request() -> None:
    async with tier(FakeExecutor()) as up, client_of(up) as client:
        stream = client.stream("hello", LONG)
        reading = asyncio.ensure_future(_first(stream))
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        await up.executor.step()
        assert (await reading).text
        await up.executor.saw(lambda: up.executor.num_aboard == 0)


async def test_leaving_the_with_block_cancels_the_request() -> None:
    async with tier(FakeExecutor()) as up, client_of(up) as client:
        async with client.stream("hello", LONG) as stream:
            await up.executor.saw(lambda: up.executor.num_aboard == 1)
        await up.executor.saw(lambda: up.executor.num_aboard == 0)
        with pytest.raises(Cancelled):
            await _first(stream)


async def test_cancelling_the_task_cancels_the_request_and_is_no_error_of_ours() -> None:
    async with tier(FakeExecutor()) as up, client_of(up) as client:
        for work in (lambda: client.generate("hello", LONG), lambda: _first(client.stream("hello", LONG))):
            task = asyncio.ensure_future(work())
            await up.executor.saw(lambda: up.executor.num_aboard == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await up.executor.saw(lambda: up.executor.num_aboard == 0)


async def test_closing_ends_what_runs_with_an_error_and_cancels_no_task() -> None:
    async with tier(FakeExecutor()) as up:
        client = client_of(up)
        works = (client.generate("hello", LONG), _first(client.stream("hello", LONG)))
        tasks = [asyncio.ensure_future(work) for work in works]
        await up.executor.saw(lambda: up.executor.num_aboard == 2)
        await client.close()
        for task in tasks:
            with pytest.raises(Cancelled):
                await task
        await up.executor.saw(lambda: up.executor.num_aboard == 0)


async def test_a_timeout_of_asyncio_around_a_stream_is_a_timeout() -> None:
    async with tier(FakeExecutor()) as up, client_of(up) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await _first(client.stream("hello", LONG))
        await asyncio.wait_for(up.executor.saw(lambda: up.executor.num_aboard == 0), WAIT_S)


async def test_a_deadline_ends_the_call() -> None:
    async with tier(FakeExecutor()) as up, client_of(up, timeout=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("hello")
        with pytest.raises(DeadlineExceeded):
            await _first(client.stream("hello", timeout=0.1))


async def test_errors_are_ours() -> None:
    async with tier(FakeExecutor(), max_concurrent_requests=1, max_queue_size=0) as up, client_of(up) as client:
        with pytest.raises(NotFound):
            await client.get_model("other")
        with pytest.raises(InvalidRequest):
            await client.generate("")
        with pytest.raises(InvalidRequest):
            client.stream("x", SamplingParams(max_tokens=-1))
        async with client.stream("x", LONG):
            await up.executor.saw(lambda: up.executor.num_aboard == 1)
            with pytest.raises(ResourceExhausted) as busy:
                await _first(client.stream("y"))
    assert busy.value.reason_name == "QUEUE_FULL" and busy.value.retry_after_ms


async def test_tokenizer_and_model_calls() -> None:
    async with tier() as up, client_of(up) as client:
        assert await client.tokenize("ab") == [97, 98]
        assert await client.detokenize([0, 1]) == "ab"
        assert [model.name for model in await client.list_models()] == ["also-tiny", "tiny"]
        assert (await client.get_model()).architecture == "FakeForCausalLM"
        with pytest.raises(FailedPrecondition):
            await client.render_chat([{"role": "user", "content": "hi"}])


async def test_chat_sends_messages() -> None:
    seen: list[Any] = []
    messages = [{"role": "user", "content": "Hi"}]
    async with tier() as up, client_of(up) as client:
        up.preprocessor.encode = lambda prompt, **_: seen.append(prompt) or [1]
        await client.chat(messages, SamplingParams(max_tokens=1), add_generation_prompt=False)
        assert [delta async for delta in client.stream_chat(messages, SamplingParams(max_tokens=1))]
    assert seen[0].chat.HasField("add_generation_prompt") and not seen[0].chat.add_generation_prompt
    assert seen[1].chat.messages[0].content[0].text == "Hi"
