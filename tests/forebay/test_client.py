"""The blocking client against a real frontend: what it sends, what it gives, and how calls end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from forebay import Client, SamplingParams, chat_prompt
from forebay.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from forebay.rpc import add_service
from forebay.v1 import generation_pb2, prompt_pb2
from forebay.v1.errors_pb2 import ErrorReason
from tests.frontend.doubles import text_of
from tests.frontend.fake_executor import FakeExecutor, expected_tokens
from tests.frontend.harness import tier, until

ROOT = Path(__file__).parents[2]
GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]


async def blocking(work: Any, *arguments: Any, **options: Any) -> Any:
    """Runs what blocks beside the event loop that serves it."""
    return await asyncio.wait_for(asyncio.to_thread(work, *arguments, **options), 20)


def client_of(up: Any, **options: Any) -> Client:
    return Client(f"127.0.0.1:{up.port}", **{"timeout": 10.0, **options})


async def test_generate_gives_all_sequences_with_what_was_counted() -> None:
    async with tier() as up:
        with client_of(up) as client:
            output = await blocking(
                client.generate, "hello", SamplingParams(n=2, max_tokens=5, seed=3), request_id="mine"
            )
    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("mine", "hello", None)
    assert (output.num_prompt_tokens, output.num_cached_tokens, output.seed, output.finished) == (5, 2, 3, True)
    for index, sequence in enumerate(output.outputs):
        assert sequence.index == index
        assert sequence.token_ids == expected_tokens(3, index, 5)
        assert sequence.text == text_of(sequence.token_ids)
        assert (sequence.finish_reason, sequence.stop_reason) == ("length", None)
        assert sequence.logprobs is None and sequence.cumulative_logprob is None


@pytest.mark.parametrize("prompt", [[5, 6], {"prompt_token_ids": [5, 6]}], ids=["list", "dictionary"])
async def test_token_ids_are_taken_in_either_form(prompt: Any) -> None:
    async with tier() as up:
        with client_of(up) as client:
            output = await blocking(client.generate, prompt, SamplingParams(max_tokens=1))
    assert output.prompt is None and output.prompt_token_ids == [5, 6]
    assert list(up.executor.submits[0].prompt_token_ids) == [5, 6]


async def test_priority_and_model_reach_the_server() -> None:
    async with tier() as up:
        with client_of(up) as client:
            await blocking(client.generate, "x", SamplingParams(max_tokens=1), priority=-7, model="also-tiny")
            with pytest.raises(NotFound, match="'other'"):
                await blocking(client.generate, "x", model="other")
    assert [submit.priority for submit in up.executor.submits] == [-7]


async def test_logprobs_are_dictionaries_by_token_id() -> None:
    params = SamplingParams(max_tokens=2, seed=1, logprobs=1, prompt_logprobs=1)
    async with tier() as up:
        with client_of(up) as client:
            output = await blocking(client.generate, [9, 8, 7], params)
    first, second = output.outputs[0].token_ids
    assert [list(entry) for entry in output.outputs[0].logprobs] == [[first], [second]]
    assert output.outputs[0].logprobs[1][second].logprob == -1.5
    assert output.outputs[0].cumulative_logprob == -2.0
    assert output.prompt_logprobs[0] is None
    assert output.prompt_logprobs[1][8].logprob == -1.0 and output.prompt_logprobs[1][8].decoded_token is None
    assert set(output.prompt_logprobs[2]) == {7}


async def test_a_stop_reason_is_what_the_request_asked_for() -> None:
    tokens = expected_tokens(1, 0, 8)
    async with tier() as up:
        with client_of(up) as client:
            by_id = await blocking(
                client.generate, "x", SamplingParams(max_tokens=8, seed=1, stop_token_ids=[tokens[2]])
            )
            text = text_of(tokens[3:5])
            by_text = await blocking(client.generate, "x", SamplingParams(max_tokens=8, seed=1, stop=text))
    assert (by_id.outputs[0].finish_reason, by_id.outputs[0].stop_reason) == ("stop", tokens[2])
    assert (by_text.outputs[0].finish_reason, by_text.outputs[0].stop_reason) == ("stop", text)


async def test_stream_gives_the_same_as_generate_delta_by_delta() -> None:
    params = SamplingParams(max_tokens=6, seed=4, n=2, logprobs=0)
    async with tier() as up:
        with client_of(up) as client:
            whole = await blocking(client.generate, "hello", params)
            stream = client.stream("hello", params)
            assert stream.seed is None
            deltas = await blocking(list, stream)
    for sequence in whole.outputs:
        mine = [delta for delta in deltas if delta.index == sequence.index]
        assert "".join(delta.text for delta in mine) == sequence.text
        assert [token_id for delta in mine for token_id in delta.token_ids] == sequence.token_ids
        assert [entry for delta in mine for entry in delta.logprobs] == sequence.logprobs
        assert [delta.finish_reason for delta in mine if delta.finish_reason] == ["length"]
    assert (stream.seed, stream.num_prompt_tokens, stream.num_completion_tokens, stream.num_cached_tokens) == (
        4,
        5,
        12,
        2,
    )
    assert stream.request_id


async def test_leaving_a_stream_early_cancels_the_request() -> None:
    async with tier(FakeExecutor()) as up:
        with client_of(up) as client:

            def first_delta() -> str:
                for delta in client.stream("hello", SamplingParams(max_tokens=1000)):
                    return delta.text
                raise AssertionError("nothing came")

            reading = asyncio.ensure_future(blocking(first_delta))
            await up.executor.saw(lambda: up.executor.num_aboard == 1)
            await up.executor.step()
            assert await reading
            await up.executor.saw(lambda: up.executor.num_aboard == 0)
    assert len(up.executor.aborts) == 1


async def test_leaving_the_with_block_cancels_a_stream_that_nobody_read() -> None:
    async with tier(FakeExecutor()) as up:
        with client_of(up) as client:
            with client.stream("hello", SamplingParams(max_tokens=1000)):
                await up.executor.saw(lambda: up.executor.num_aboard == 1)
            await up.executor.saw(lambda: up.executor.num_aboard == 0)


async def test_a_stream_that_another_thread_cancels_raises_cancelled() -> None:
    async with tier(FakeExecutor()) as up:
        with client_of(up) as client:
            stream = client.stream("hello", SamplingParams(max_tokens=1000))
            reading = asyncio.ensure_future(blocking(list, stream))
            await up.executor.saw(lambda: up.executor.num_aboard == 1)
            stream.cancel()
            with pytest.raises(Cancelled):
                await reading


async def test_a_timeout_ends_the_call_and_the_request() -> None:
    async with tier(FakeExecutor()) as up:
        with client_of(up, timeout=0.2) as client:
            with pytest.raises(DeadlineExceeded):
                await blocking(client.generate, "hello")
            with pytest.raises(DeadlineExceeded):
                await blocking(list, client.stream("hello", timeout=0.1))
            await up.executor.saw(lambda: up.executor.num_aboard == 0)


async def test_errors_tell_reason_fields_and_when_to_come_back() -> None:
    async with tier(FakeExecutor(), max_concurrent_requests=1, max_queue_size=0) as up:
        with client_of(up) as client:
            with pytest.raises(InvalidRequest) as empty:
                await blocking(client.generate, "")
            with pytest.raises(InvalidRequest) as priority:
                await blocking(list, client.stream("x", priority=5_000))
            running = client.stream("x", SamplingParams(max_tokens=1000))
            await up.executor.saw(lambda: up.executor.num_aboard == 1)
            with pytest.raises(ResourceExhausted) as busy:
                await blocking(client.generate, "y")
            running.cancel()
    assert empty.value.reason == ErrorReason.ERROR_REASON_EMPTY_PROMPT
    assert priority.value.fields[0][0] == "priority"
    assert busy.value.reason_name == "QUEUE_FULL" and busy.value.retry_after_ms >= 100


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.generate("x", SamplingParams(max_tokens=-1)),
        lambda client: client.generate([-1]),
        lambda client: client.generate(7),
        lambda client: client.generate(b"bytes"),
        lambda client: client.generate({"text": "x"}),
        lambda client: client.generate("\udc80"),
        lambda client: client.stream("x", priority=2**40),
        lambda client: client.chat([{"role": "user", "content": None}]),
        lambda client: client.detokenize(["a"]),
    ],
    ids=["sampling", "ids", "number", "bytes", "keys", "surrogate", "priority", "content", "detokenize"],
)
def test_what_cannot_be_sent_is_refused_before_it_is(call: Any) -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidRequest):
        call(client)


async def test_tokenizer_and_model_calls() -> None:
    async with tier() as up:
        with client_of(up) as client:
            assert await blocking(client.tokenize, "ab") == [97, 98]
            assert await blocking(client.detokenize, [0, 1]) == "ab"
            assert [model.name for model in await blocking(client.list_models)] == ["also-tiny", "tiny"]
            model = await blocking(client.get_model)
            assert (model.name, model.architecture, model.num_executors) == ("tiny", "FakeForCausalLM", 1)
            with pytest.raises(FailedPrecondition) as raised:
                await blocking(client.render_chat, [{"role": "user", "content": "hi"}])
    assert raised.value.reason_name == "CHAT_TEMPLATE"


async def test_chat_sends_messages() -> None:
    seen: list[prompt_pb2.Prompt] = []
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, "there"], "name": "Ada"},
        {"role": "assistant", "content": "Hello,"},
    ]
    async with tier() as up:
        up.preprocessor.encode = lambda prompt, **_: seen.append(prompt) or [1]
        with client_of(up) as client:
            output = await blocking(client.chat, messages, SamplingParams(max_tokens=2), continue_final_message=True)
            deltas = await blocking(list, client.stream_chat(messages[:2], SamplingParams(max_tokens=2)))
    assert len(output.outputs[0].token_ids) == 2 and deltas
    chat = seen[0].chat
    assert chat.continue_final_message and not chat.HasField("add_generation_prompt")
    assert [prompt_pb2.ChatRole.Name(m.role) for m in chat.messages] == [
        "CHAT_ROLE_SYSTEM", "CHAT_ROLE_USER", "CHAT_ROLE_ASSISTANT",
    ]  # fmt: skip
    assert [part.text for part in chat.messages[1].content] == ["Hi", "there"] and chat.messages[1].name == "Ada"
    assert len(seen[1].chat.messages) == 2 and not seen[1].chat.HasField("continue_final_message")


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("hello", "messages[0]"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].image_url"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[0].content[0]"),
        ({"role": "user", "content": "x", "name": 5}, "messages[0].name"),
        ({"role": "assistant", "content": "x", "tool_calls": [1]}, "messages[0]"),
    ],
)
def test_a_message_that_is_none_is_refused_by_its_place(message: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        chat_prompt([message])
    assert raised.value.fields[0][0] == field and raised.value.message.startswith(field)


def test_keys_that_are_none_are_as_if_not_there() -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": None, "name": None}
    assert chat_prompt([message]) == chat_prompt([{"role": "assistant", "content": "x"}])


class Flaky:
    """A GenerationService that is unavailable for its first calls; a stream breaks after its first message."""

    def __init__(self, num_failures: int) -> None:
        self.num_failures, self.num_calls = num_failures, 0
        self.metadata: list[dict[str, Any]] = []

    def _count(self, context: grpc.aio.ServicerContext) -> None:
        self.num_calls += 1
        self.metadata.append(dict(context.invocation_metadata()))
        if self.num_calls <= self.num_failures:
            raise Unavailable("not yet", retry_after_ms=1)

    async def Generate(self, request: Any, context: grpc.aio.ServicerContext) -> generation_pb2.GenerateResponse:
        self._count(context)
        return generation_pb2.GenerateResponse(request_id=request.request_id)

    async def StreamGenerate(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self._count(context)
        yield generation_pb2.StreamGenerateResponse(deltas=[generation_pb2.SequenceDelta(text="one")])
        raise Unavailable("lost", ErrorReason.ERROR_REASON_EXECUTOR_LOST)


@pytest.fixture
async def flaky() -> Any:
    """Serves a Flaky; gives it and its address."""
    server, servicer = grpc.aio.server(options=(("grpc.so_reuseport", 0),)), Flaky(2)
    add_service(server, GENERATION, servicer)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


async def test_an_unavailable_server_is_tried_again(flaky: Any) -> None:
    servicer, address = flaky
    with Client(address, timeout=10) as client:
        assert (await blocking(client.generate, "x", request_id="a")).request_id == "a"
    assert servicer.num_calls == 3


async def test_without_retry_the_first_answer_counts(flaky: Any) -> None:
    servicer, address = flaky
    with Client(address, timeout=10, retry=False) as client, pytest.raises(Unavailable, match="not yet") as raised:
        await blocking(client.generate, "x")
    assert servicer.num_calls == 1 and raised.value.retry_after_ms == 1


async def test_a_stream_is_not_tried_again_once_it_has_begun(flaky: Any) -> None:
    servicer, address = flaky
    texts = []
    with Client(address, timeout=10) as client, pytest.raises(Unavailable) as raised:

        def collect() -> None:
            for delta in client.stream("x"):
                texts.append(delta.text)

        await blocking(collect)
    assert texts == ["one"] and servicer.num_calls == 3
    assert raised.value.reason == ErrorReason.ERROR_REASON_EXECUTOR_LOST


@pytest.mark.parametrize("metadata", [{"Team": "search"}, [("team", "search")]], ids=["dictionary", "pairs"])
async def test_metadata_goes_with_every_call(metadata: Any, flaky: Any) -> None:
    servicer, address = flaky
    with Client(address, timeout=10, metadata=metadata) as client:
        await blocking(client.generate, "x")
    assert all(seen["team"] == "search" for seen in servicer.metadata)


def test_nobody_there_is_unavailable() -> None:
    with Client("127.0.0.1:1", timeout=10, retry=False) as client, pytest.raises(Unavailable):
        client.get_model()


async def test_a_message_over_the_limit_is_refused() -> None:
    async with tier() as up:
        with client_of(up, max_message_bytes=10_000) as client, pytest.raises(ResourceExhausted):
            await blocking(client.generate, "x" * 20_000)


async def test_tls_with_a_root_certificate(tmp_path: Path) -> None:
    key, certificate = _self_signed(tmp_path)
    server, servicer = grpc.aio.server(options=(("grpc.so_reuseport", 0),)), Flaky(0)
    add_service(server, GENERATION, servicer)
    credentials = grpc.ssl_server_credentials([(key, certificate)], certificate, require_client_auth=True)
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        trusted = {"root_certificates": certificate, "private_key": key, "certificate_chain": certificate}
        with Client(f"localhost:{port}", timeout=10, **trusted) as client:
            assert (await blocking(client.generate, "x", request_id="b")).request_id == "b"
        with Client(f"localhost:{port}", timeout=10, secure=True, retry=False) as client, pytest.raises(Unavailable):
            await blocking(client.generate, "x")  # the system does not know this certificate
        with Client(f"localhost:{port}", timeout=10, retry=False) as client, pytest.raises(Unavailable):
            await blocking(client.generate, "x")  # plaintext
    finally:
        await server.stop(None)


def _self_signed(folder: Path) -> tuple[bytes, bytes]:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not installed: no certificate to test with")
    return key.read_bytes(), certificate.read_bytes()


def test_a_key_needs_its_certificates() -> None:
    with pytest.raises(ValueError, match="private_key and certificate_chain"):
        Client(private_key=b"key")


async def test_closing_ends_what_runs() -> None:
    async with tier(FakeExecutor()) as up:
        client = client_of(up)
        reading = asyncio.ensure_future(blocking(list, client.stream("hello", SamplingParams(max_tokens=1000))))
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        client.close()
        with pytest.raises(Cancelled):
            await reading
        await up.executor.saw(lambda: up.executor.num_aboard == 0)
        await until(lambda: up.ledger.running == 0)


@pytest.mark.parametrize("statement", ["import forebay", "from forebay import AsyncClient, Client, SamplingParams"])
def test_the_client_stays_light(statement: str) -> None:
    heavy = ("torch", "triton", "transformers", "tokenizers", "numpy", "safetensors", "jinja2", "huggingface_hub")
    code = f"import sys; {statement}; print(*[name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.split() == []


def test_importing_the_package_alone_loads_not_even_grpc() -> None:
    code = "import sys, forebay; print('grpc' in sys.modules, forebay.__version__)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.split()[0] == "False" and result.stdout.split()[1][0].isdigit()


def test_every_public_name_is_there_and_others_are_not() -> None:
    import forebay

    assert all(getattr(forebay, name) is not None for name in forebay.__all__)
    assert set(forebay.__all__) <= set(dir(forebay))
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        forebay.Clinet  # noqa: B018
