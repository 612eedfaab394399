"""TokenizerService does what generation does with text, ModelService says what is served, and both say what is wrong."""

from __future__ import annotations

import threading

import pytest

from forebay.errors import FailedPrecondition
from forebay.v1 import media_pb2, model_pb2, prompt_pb2, sampling_pb2
from forebay.v1 import tokenizer_pb2 as api
from forebay.v1.errors_pb2 import ErrorReason
from tests.frontend.doubles import text_of
from tests.frontend.fake_executor import FakeExecutor
from tests.frontend.harness import error_of, tier, until

TEXT = prompt_pb2.Prompt(text="hello")


def ids_of(*token_ids: int) -> prompt_pb2.Prompt:
    return prompt_pb2.Prompt(token_ids=prompt_pb2.TokenIds(ids=token_ids))


async def test_text_is_tokenized_as_for_generation() -> None:
    async with tier() as up:
        answer = await up.tokenizer.Tokenize(api.TokenizeRequest(prompt=TEXT))
        await up.generate(prompt="hello", max_tokens=1)
        assert answer.token_ids == up.executor.submits[0].prompt_token_ids
        assert answer.max_model_len == up.executor.max_model_len and not answer.tokens


async def test_tokens_are_written_out_if_asked_for() -> None:
    async with tier() as up:
        answer = await up.tokenizer.Tokenize(api.TokenizeRequest(prompt=ids_of(1, 2), with_tokens=True, model="tiny"))
        assert (list(answer.token_ids), list(answer.tokens)) == ([1, 2], ["b", "c"])


@pytest.mark.parametrize(
    ("fields", "seen"),
    [({}, True), ({"add_special_tokens": True}, True), ({"add_special_tokens": False}, False)],
    ids=str,
)
async def test_special_tokens_are_added_unless_the_caller_says_no(fields: dict, seen: bool) -> None:
    async with tier() as up:
        given = []
        up.preprocessor.encode = lambda prompt, *, add_special_tokens: given.append(add_special_tokens) or [1]
        await up.tokenizer.Tokenize(api.TokenizeRequest(prompt=TEXT, **fields))
        assert given == [seen]


@pytest.mark.parametrize(
    ("fields", "seen"),
    [({}, True), ({"skip_special_tokens": True}, True), ({"skip_special_tokens": False}, False)],
    ids=str,
)
async def test_special_tokens_are_left_out_of_text_unless_the_caller_says_no(fields: dict, seen: bool) -> None:
    async with tier() as up:
        given = []
        up.preprocessor.decode = lambda ids, *, skip_special_tokens: given.append((ids, skip_special_tokens)) or "text"
        answer = await up.tokenizer.Detokenize(api.DetokenizeRequest(token_ids=[5, 6], **fields))
        assert (answer.text, given) == ("text", [([5, 6], seen)])


async def test_ids_become_text_and_no_ids_no_text() -> None:
    async with tier() as up:
        assert (await up.tokenizer.Detokenize(api.DetokenizeRequest(token_ids=[7, 4]))).text == text_of([7, 4])
        assert (await up.tokenizer.Detokenize(api.DetokenizeRequest())).text == ""


async def test_chat_is_rendered() -> None:
    async with tier() as up:
        up.preprocessor.render_chat = lambda chat: (f"{len(chat.messages)} messages", [1, 2, 3])
        chat = prompt_pb2.Chat(messages=[prompt_pb2.ChatMessage()])
        answer = await up.tokenizer.RenderChat(api.RenderChatRequest(chat=chat))
        assert (answer.text, list(answer.token_ids)) == ("1 messages", [1, 2, 3])


async def test_errors_of_the_text_side_are_the_callers() -> None:
    async with tier() as up:
        tokenizer = up.tokenizer
        empty = await error_of(tokenizer.Tokenize(api.TokenizeRequest()))
        assert (empty.code, empty.reason) == ("INVALID_ARGUMENT", ErrorReason.ERROR_REASON_EMPTY_PROMPT)
        large = await error_of(tokenizer.Detokenize(api.DetokenizeRequest(token_ids=[1, 1000])))
        assert (large.code, large.reason) == ("INVALID_ARGUMENT", ErrorReason.ERROR_REASON_TOKEN_OUT_OF_RANGE)
        assert large.fields == (("token_ids", "ids must be below 1000"),)
        chat = await error_of(tokenizer.RenderChat(api.RenderChatRequest()))
        assert (chat.code, chat.reason) == ("FAILED_PRECONDITION", ErrorReason.ERROR_REASON_CHAT_TEMPLATE)

        def no_tokenizer(*_: object, **__: object) -> None:
            raise FailedPrecondition("token ids only", ErrorReason.ERROR_REASON_NO_TOKENIZER)

        up.preprocessor.encode = up.preprocessor.decode = up.preprocessor.tokens = no_tokenizer
        for call in (
            tokenizer.Tokenize(api.TokenizeRequest(prompt=TEXT)),
            tokenizer.Detokenize(api.DetokenizeRequest(token_ids=[1])),
        ):
            error = await error_of(call)
            assert (error.code, error.reason) == ("FAILED_PRECONDITION", ErrorReason.ERROR_REASON_NO_TOKENIZER)


async def test_unknown_names_are_not_found_everywhere() -> None:
    async with tier() as up:
        for call in (
            up.tokenizer.Tokenize(api.TokenizeRequest(model="other", prompt=TEXT)),
            up.tokenizer.Detokenize(api.DetokenizeRequest(model="other")),
            up.tokenizer.RenderChat(api.RenderChatRequest(model="other")),
            up.models.GetModel(model_pb2.GetModelRequest(model="other")),
        ):
            error = await error_of(call)
            assert (error.code, error.reason) == ("NOT_FOUND", ErrorReason.ERROR_REASON_MODEL_NOT_FOUND)


# ---- the tokenizer's threads -------------------------------------------------------------------------------------


async def test_calls_that_would_wait_too_long_for_a_thread_are_refused_and_say_when_to_come_back() -> None:
    async with tier(preprocess_threads=1, max_queue_size=1) as up:
        up.preprocessor.gate.clear()
        calls = [up.tokenizer.Tokenize(api.TokenizeRequest(prompt=TEXT)) for _ in range(2)]
        await until(lambda: up.server._threads._num_waiting == 2)
        error = await error_of(up.tokenizer.Tokenize(api.TokenizeRequest(prompt=TEXT)))
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", ErrorReason.ERROR_REASON_QUEUE_FULL)
        assert error.message == "2 calls wait for the tokenizer" and error.retry_after_ms == 200
        up.preprocessor.gate.set()
        for call in calls:
            await call


async def test_texts_do_not_wait_for_media() -> None:
    async with tier(preprocess_threads=1, media_workers=1) as up:
        encode, gate = up.preprocessor.encode, threading.Event()

        def encode_slowly(prompt: prompt_pb2.Prompt, **options: object) -> list[int]:
            assert not prompt.media or gate.wait(10), "the test never opened the gate"
            return encode(prompt, **options)

        up.preprocessor.encode = encode_slowly
        picture = prompt_pb2.Prompt(text="x", media=[media_pb2.Media(kind=media_pb2.MEDIA_KIND_IMAGE, data=b"x")])
        slow = [up.tokenizer.Tokenize(api.TokenizeRequest(prompt=picture)) for _ in range(20)]
        await until(lambda: up.server._threads._num_waiting == 20)
        assert (await up.tokenizer.Tokenize(api.TokenizeRequest(prompt=TEXT))).token_ids
        gate.set()
        for call in slow:
            await call


async def test_callers_that_left_take_no_place() -> None:
    async with tier(preprocess_threads=1, max_queue_size=1) as up:
        up.preprocessor.gate.clear()
        running = up.tokenizer.Tokenize(api.TokenizeRequest(prompt=TEXT))
        await until(lambda: up.preprocessor.num_encoded == 1)
        for _ in range(5):
            leaving = up.tokenizer.Tokenize(api.TokenizeRequest(prompt=TEXT))
            await until(lambda: up.server._threads._num_waiting == 2)
            leaving.cancel()
            await until(lambda: up.server._threads._num_waiting == 1)
        up.preprocessor.gate.set()
        await running
        assert up.preprocessor.num_encoded == 1, "what nobody waits for is not done"


# ---- the model ---------------------------------------------------------------------------------------------------


async def test_model_is_described_by_what_the_executors_tell() -> None:
    async with tier(FakeExecutor(max_model_len=77), FakeExecutor(max_model_len=77)) as up:
        model = (await up.models.GetModel(model_pb2.GetModelRequest())).model
        assert model == model_pb2.Model(
            name="tiny",
            architecture="FakeForCausalLM",
            max_model_len=77,
            vocab_size=1000,
            eos_token_ids=[],
            has_tokenizer=True,
            default_sampling=sampling_pb2.SamplingParams(temperature=0.5),
            model_digest="digest",
            num_executors=2,
            tasks=[model_pb2.MODEL_TASK_GENERATE],
        )


async def test_model_is_described_without_an_executor_as_far_as_it_is_known() -> None:
    executor = FakeExecutor()
    executor.welcomes = False
    async with tier(executor, ready=0) as up:
        model = (await up.models.GetModel(model_pb2.GetModelRequest())).model
        assert (model.name, model.num_executors, model.max_model_len, model.vocab_size) == ("tiny", 0, 0, 0)
        assert list(model.eos_token_ids) == [2], "as the model's folder has it"
        answer = await up.tokenizer.Tokenize(api.TokenizeRequest(prompt=TEXT))
        assert answer.max_model_len == 0


async def test_all_names_are_listed_in_order_and_can_be_asked_for() -> None:
    async with tier() as up:
        models = (await up.models.ListModels(model_pb2.ListModelsRequest())).models
        assert [model.name for model in models] == ["also-tiny", "tiny"]
        for model in models:
            assert (await up.models.GetModel(model_pb2.GetModelRequest(model=model.name))).model == model


async def test_model_is_remembered_when_its_executors_are_gone() -> None:
    async with tier(FakeExecutor()) as up:
        await up.executor.kill()
        await up.until_ready(0)
        model = (await up.models.GetModel(model_pb2.GetModelRequest())).model
        assert (model.num_executors, model.vocab_size) == (0, 1000)
