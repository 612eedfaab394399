"""Both tiers as processes, with the embedded model, as their users run them: right, together, and when things break."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("torch", reason="torch is not installed: the executor needs forebay[executor]")

from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402

from forebay import LLM, AsyncClient, Client, SamplingParams  # noqa: E402
from forebay.errors import EXIT_BAD_CONFIG, InvalidRequest, Unavailable  # noqa: E402
from forebay.rpc import error_from_rpc  # noqa: E402
from forebay.v1.errors_pb2 import ErrorReason  # noqa: E402
from tests.processes import (  # noqa: E402
    GENERATION,
    MODEL,
    ROOT,
    SERVING,
    Server,
    executor,
    frontend,
    load_of,
    serve,
    until,
)

# One set of servers for all of these, where tests are spread over processes.
pytestmark = pytest.mark.xdist_group("end_to_end")

# Greedy continuations of these are far from any tie over 900 tokens, so that rounding cannot change them.
PROMPTS = ("A generator is", "The with statement is used to", "The assert statement", "A list is")
LONG = SamplingParams(temperature=0, max_tokens=900, ignore_eos=True)
TIMEOUT_S = 240.0
TOOLS = ROOT / ".tools" / "node_modules"


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    """The reference: the same model in this process."""
    with LLM(str(MODEL), dtype="float32", num_threads=1, disable_tqdm=True) as llm:
        yield llm


@pytest.fixture(scope="session")
def long_ids(llm: LLM) -> dict[str, list[int]]:
    """What each prompt is continued with, by itself."""
    return {prompt: llm.generate(prompt, LONG)[0].outputs[0].token_ids for prompt in PROMPTS}


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[str, str]]:
    """`forebay serve`: the addresses of its frontend and its executor."""
    with serve("--log-level", "warning") as (_, address, executor_address):
        yield address, executor_address


@pytest.fixture
def client(served: tuple[str, str]) -> Iterator[Client]:
    with Client(served[0], timeout=TIMEOUT_S) as client:
        yield client


def test_streamed_text_is_that_of_the_model_in_this_process_and_of_the_tokenizer(client: Client, llm: LLM) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(MODEL)
    params = SamplingParams(temperature=0, max_tokens=64)
    for prompt in PROMPTS[:3]:
        deltas = list(client.stream(prompt, params))
        ids = [token_id for delta in deltas for token_id in delta.token_ids]
        text = "".join(delta.text for delta in deltas)
        expected = llm.generate(prompt, params)[0].outputs[0]
        assert (ids, text) == (expected.token_ids, expected.text)
        assert text == tokenizer.decode(ids, skip_special_tokens=True)
        assert deltas[-1].finish_reason == expected.finish_reason
        assert client.generate(prompt, params).outputs[0] == expected


def test_chat_is_answered_as_in_this_process(client: Client, llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the json module for?"}]
    params = SamplingParams(temperature=0, max_tokens=32)
    (expected,) = llm.chat(messages, params)
    assert client.chat(messages, params).outputs[0] == expected.outputs[0]
    assert client.render_chat(messages).token_ids == expected.prompt_token_ids
    assert "".join(delta.text for delta in client.stream_chat(messages, params)) == expected.outputs[0].text


def test_sampling_with_a_seed_and_logprobs_are_those_of_this_process(client: Client, llm: LLM) -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=5, n=3, max_tokens=16, logprobs=2, prompt_logprobs=2)
    remote, (local,) = client.generate(PROMPTS[0], params), llm.generate(PROMPTS[0], params)
    for ours, theirs in zip(remote.outputs, local.outputs, strict=True):
        assert ours.token_ids == theirs.token_ids and ours.text == theirs.text
        for left, right in zip(ours.logprobs, theirs.logprobs, strict=True):
            assert {i: value.rank for i, value in left.items()} == {i: value.rank for i, value in right.items()}
            assert all(value.logprob == pytest.approx(right[i].logprob, abs=1e-3) for i, value in left.items())
    assert [entry and set(entry) for entry in remote.prompt_logprobs] == [
        entry and set(entry) for entry in local.prompt_logprobs
    ]


def test_tokenizer_and_model_services_answer(client: Client) -> None:
    ids = client.tokenize("A generator is")
    assert client.detokenize(ids) == "A generator is"
    model = client.get_model()
    assert (model.architecture, model.max_model_len, model.num_executors) == ("Qwen2ForCausalLM", 1024, 1)


async def test_32_clients_at_once_all_get_what_each_would_get_alone(
    served: tuple[str, str], long_ids: dict[str, list[int]]
) -> None:
    async def one(number: int) -> None:
        prompt, count = PROMPTS[number % len(PROMPTS)], 20 + 7 * number
        params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
        async with AsyncClient(served[0], timeout=TIMEOUT_S) as client:
            ids = [token_id async for delta in client.stream(prompt, params) for token_id in delta.token_ids]
        assert ids == long_ids[prompt][:count], prompt

    await asyncio.gather(*map(one, range(32)))


def test_cancelling_frees_the_kv_blocks(client: Client, served: tuple[str, str]) -> None:
    executor_address = served[1]
    until(lambda: load_of(executor_address).num_used_blocks == 0)
    with contextlib.ExitStack() as stack:
        params = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True, n=4)
        streams = [iter(stack.enter_context(client.stream(prompt, params))) for prompt in PROMPTS]
        assert all(next(stream).token_ids for stream in streams)
        load = load_of(executor_address)
        assert load.num_running > 0 and load.num_used_blocks >= load.num_running
    until(lambda: load_of(executor_address).num_used_blocks == 0)
    load = load_of(executor_address)
    assert (load.num_running, load.num_waiting) == (0, 0)


def test_a_client_that_dies_frees_the_kv_blocks(served: tuple[str, str]) -> None:
    code = (
        "import sys; from forebay import Client, SamplingParams as S; "
        "stream = iter(Client(sys.argv[1]).stream('A list is', S(max_tokens=1000, ignore_eos=True, n=32))); "
        "print(next(stream).token_ids, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, served[0]], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().startswith(b"[")
        assert load_of(served[1]).num_used_blocks > 0
        process.kill()
    until(lambda: load_of(served[1]).num_used_blocks == 0)


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", b"\x12\x05\x0a\x50abc", b"\x12\x04\x0a\x02\xff\xfe", b"\x0a" * 5_000],
    ids=["not-protobuf", "cut-short", "text-not-utf-8", "nonsense"],
)
@pytest.mark.parametrize("method", ["Generate", "StreamGenerate"])
def test_malformed_bytes_are_an_invalid_argument(method: str, data: bytes, served: tuple[str, str]) -> None:
    with grpc.insecure_channel(served[0]) as channel:
        kind = channel.unary_stream if method == "StreamGenerate" else channel.unary_unary
        call = kind(f"/{GENERATION}/{method}", request_serializer=None, response_deserializer=None)
        with pytest.raises(grpc.RpcError) as raised:
            answer = call(data, timeout=TIMEOUT_S)
            list(answer) if method == "StreamGenerate" else answer
    error = error_from_rpc(raised.value)
    assert isinstance(error, InvalidRequest) and error.reason == ErrorReason.ERROR_REASON_MALFORMED_MESSAGE


# Clients in other languages


def _greedy_text(llm: LLM, prompt: str) -> str:
    return llm.generate(prompt, SamplingParams(temperature=0, max_tokens=48))[0].outputs[0].text


def _run(*command: str, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8",
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_example_in_python_prints_the_same_text(served: tuple[str, str], llm: LLM) -> None:
    assert _run(sys.executable, "examples/client.py", served[0], PROMPTS[1]) == _greedy_text(llm, PROMPTS[1]) + "\n"


def test_a_client_in_node_prints_the_same_text(served: tuple[str, str], llm: LLM) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (TOOLS / "@grpc" / "grpc-js").is_dir() or not (TOOLS / "@grpc" / "proto-loader").is_dir():
        pytest.skip("@grpc/grpc-js or @grpc/proto-loader is not installed: run `make tools` (it takes npm)")
    text = _run(node, "examples/client.mjs", served[0], PROMPTS[1], NODE_MODULES=str(TOOLS))
    assert text == _greedy_text(llm, PROMPTS[1]) + "\n"


def test_buf_curl_by_reflection_gets_the_same_text(served: tuple[str, str], llm: LLM, tmp_path: Path) -> None:
    buf = str(TOOLS / ".bin" / "buf") if (TOOLS / ".bin" / "buf").exists() else shutil.which("buf")
    if buf is None:
        pytest.skip("buf is not installed: run `make tools` (it takes npm)")
    request = f'{{"prompt": {{"text": "{PROMPTS[1]}"}}, "sampling": {{"max_tokens": 48, "temperature": 0}}}}'
    command = (buf, "curl", "--http2-prior-knowledge", "--protocol", "grpc", "-d", request)
    out = _run(*command, f"http://{served[0]}/{GENERATION}/StreamGenerate", BUF_CACHE_DIR=str(tmp_path))
    texts = re.findall(r'"text": ?("(?:[^"\\]|\\.)*")', out)
    assert "".join(map(json.loads, texts)) == _greedy_text(llm, PROMPTS[1])


# When things break


def test_streams_go_on_unchanged_when_their_executor_is_killed(long_ids: dict[str, list[int]]) -> None:
    prompts, lost = PROMPTS * 4, []

    async def run(doomed: Server, survivor: str, address: str) -> list[list[int]]:
        not_begun, all_begun = set(range(len(prompts))), asyncio.Event()

        async def read(client: AsyncClient, number: int) -> list[int]:
            ids: list[int] = []
            async for delta in client.stream(prompts[number], LONG):
                ids += delta.token_ids
                not_begun.discard(number)
                if not not_begun and not all_begun.is_set():
                    doomed.signal(signal.SIGSTOP)  # what it runs now, it will not finish
                    all_begun.set()
            return ids

        async with AsyncClient(address, timeout=TIMEOUT_S) as client:
            tasks = [asyncio.create_task(read(client, number)) for number in range(len(prompts))]
            await asyncio.wait_for(all_begun.wait(), TIMEOUT_S)
            await asyncio.to_thread(until, lambda: load_of(survivor).num_running == 0)
            lost.extend(task for task in tasks if not task.done())
            doomed.signal(signal.SIGKILL)
            return await asyncio.gather(*tasks)

    with executor() as (doomed, one), executor() as (_, two), frontend(one, two) as (_, address):
        results = asyncio.run(run(doomed, two, address))
        assert lost
        assert results == [long_ids[prompt] for prompt in prompts]
        until(lambda: load_of(two).num_used_blocks == 0)


def test_sigterm_lets_streams_finish_refuses_new_ones_and_exits_0(long_ids: dict[str, list[int]]) -> None:
    with serve() as (server, address, _), Client(address, timeout=TIMEOUT_S, retry=False) as client:
        streams = [iter(client.stream(prompt, LONG)) for prompt in PROMPTS * 4]
        ids = [next(stream).token_ids for stream in streams]
        with grpc.insecure_channel(address) as channel:
            request = health_pb2.HealthCheckRequest(service=GENERATION)
            watching = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=TIMEOUT_S)
            assert next(watching).status == SERVING
            server.signal(signal.SIGTERM)
            assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(Unavailable) as refused:
                client.generate("too late", SamplingParams(max_tokens=1))
        for begun, stream, prompt in zip(ids, streams, PROMPTS * 4, strict=True):
            assert begun + [i for delta in stream for i in delta.token_ids] == long_ids[prompt]
        assert server.wait() == 0, server.log
    assert refused.value.reason == ErrorReason.ERROR_REASON_DRAINING and refused.value.retry_after_ms


@pytest.mark.parametrize("victim", ["executor", "frontend"])
def test_serve_ends_when_either_tier_ends(victim: str) -> None:
    with serve("--log-level", "warning") as (server, _, _):
        children = server.children
        assert set(children) == {"executor", "frontend"}
        os.kill(children[victim], signal.SIGKILL)
        assert server.wait() == 128 + signal.SIGKILL
        assert f"forebay serve: the {victim} ended with exit status 137" in server.log
        for pid in children.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


def test_serve_ends_with_its_terminal_and_takes_both_tiers_along() -> None:
    with serve("--log-level", "warning") as (server, _, _):
        children = server.children
        server.signal(signal.SIGHUP)
        assert server.wait() == 0, server.log
    for pid in children.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_second_signal_ends_serve_at_once(long_ids: dict[str, list[int]]) -> None:
    with serve() as (server, address, _), Client(address, timeout=TIMEOUT_S, retry=False) as client:
        streams = [iter(client.stream(prompt, LONG)) for prompt in PROMPTS * 8]
        for stream in streams:
            next(stream)
        server.signal(signal.SIGINT)
        until(lambda: "draining" in server.log)
        server.signal(signal.SIGINT)
        assert server.wait() != 0
        with pytest.raises(Unavailable):
            for stream in streams:
                list(stream)


def test_serve_with_settings_that_cannot_work_says_so_and_stops() -> None:
    command = [sys.executable, "-m", "forebay", "serve", str(MODEL), "--port", "0", "--max-model-len", "5000000"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert result.returncode == EXIT_BAD_CONFIG, result.stderr
    assert "Traceback" not in result.stderr
    assert "max_model_len is 5,000,000; this model takes 1,024" in result.stderr
    assert "ready" not in result.stdout
