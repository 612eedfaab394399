"""What a client asks for is what it gets: tokens, text, log-probabilities, usage, and clear answers to mistakes."""

from __future__ import annotations

import re

import pytest

from forebay.v1 import generation_pb2 as api
from forebay.v1.errors_pb2 import ErrorReason
from tests.frontend.doubles import text_of
from tests.frontend.fake_executor import FakeExecutor, expected_tokens
from tests.frontend.harness import Stream, error_of, tier

SEED = 42  # what the sampling stub draws
LETTERS = text_of(expected_tokens(SEED, 0, 8))


def as_sequence(stream: Stream, index: int) -> api.GeneratedSequence:
    """A stream's deltas of one sequence, put together."""
    whole = api.GeneratedSequence(index=index, text=stream.text(index), token_ids=stream.token_ids(index))
    for delta in stream.deltas(index):
        whole.logprobs.extend(delta.logprobs)
    last = stream.deltas(index)[-1]
    whole.finish_reason = last.finish_reason
    for name in ("stop_string", "stop_token_id"):
        if last.HasField(name):
            setattr(whole, name, getattr(last, name))
    return whole


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3, "max_tokens": 5},
        {"logprobs": 2},
        {"n": 2, "logprobs": 0, "prompt_logprobs": 3},
        {"stop": [LETTERS[2:4]]},
        {"stop": [LETTERS[2:4]], "include_stop_str_in_output": True, "logprobs": 1},
        {"stop_token_ids": [expected_tokens(SEED, 0, 4)[3]]},
        {"seed": 2**64 - 1, "max_tokens": 1},
        {"prompt": [1, 2, 3, 4, 5]},
    ],
    ids=str,
)
async def test_stream_and_unary_call_give_the_same(fields: dict) -> None:
    async with tier() as up:
        whole = await up.generate(**fields)
        stream = await up.stream(**fields).read()
        start, usage = stream.messages[0].start, stream.messages[-1].usage
        assert [as_sequence(stream, index) for index in range(fields.get("n", 1))] == list(whole.sequences)
        assert (start.seed, usage) == (whole.seed, whole.usage)
        assert start.prompt_logprobs == whole.prompt_logprobs
        assert [message.HasField("start") for message in stream.messages] == [True] + [False] * (
            len(stream.messages) - 1
        )
        assert [message.HasField("usage") for message in stream.messages] == [False] * (len(stream.messages) - 1) + [
            True
        ]


async def test_each_sequence_has_its_own_tokens_and_ends_at_its_last_delta() -> None:
    async with tier() as up:
        stream = await up.stream(n=4, max_tokens=6, seed=7).read()
        for index in range(4):
            want = expected_tokens(7, index, 6)
            assert (stream.token_ids(index), stream.text(index)) == (want, text_of(want))
            *earlier, last = stream.deltas(index)
            assert last.finish_reason == api.FINISH_REASON_LENGTH
            assert not any(delta.finish_reason for delta in earlier)


async def test_token_is_sent_when_it_comes() -> None:
    async with tier(FakeExecutor()) as up:
        stream = up.stream(max_tokens=3)
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        for num in (1, 2, 3):
            await up.executor.step()
            await stream.read(until_tokens=num)
            assert stream.token_ids() == expected_tokens(SEED, 0, num)


async def test_deltas_of_one_step_come_in_one_message() -> None:
    async with tier(FakeExecutor()) as up:
        stream = up.stream(n=5, max_tokens=2)
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        await up.executor.step()
        await stream.read(until_tokens=1)
        assert [delta.index for delta in stream.messages[0].deltas] == [0, 1, 2, 3, 4]
        await up.executor.step()
        await stream.read()
        assert len(stream.messages) == 2


async def test_logprobs_are_those_of_their_tokens() -> None:
    async with tier() as up:
        sequence = (await up.generate(logprobs=2, max_tokens=3)).sequences[0]
        found = [(e.token_id, e.logprob, e.rank, list(e.top_ids), list(e.top_logprobs)) for e in sequence.logprobs]
        tokens = expected_tokens(SEED, 0, 3)
        assert found == [(token, -i - 0.5, 1, [token] * 2, [-0.5] * 2) for i, token in enumerate(tokens)]
        assert not (await up.generate(max_tokens=3)).sequences[0].logprobs


async def test_prompt_logprobs_begin_with_the_second_token() -> None:
    async with tier() as up:
        prompt = [11, 12, 13, 14]
        answer = await up.generate(prompt=prompt, prompt_logprobs=1)
        found = [(e.token_id, e.logprob, e.rank, list(e.top_ids)) for e in answer.prompt_logprobs]
        assert found == [(12, -1.0, 1, [7]), (13, -2.0, 1, [7]), (14, -3.0, 1, [7])]
        assert not (await up.generate(prompt=[11], prompt_logprobs=1)).prompt_logprobs


async def test_seed_is_told_whether_it_was_given_or_drawn() -> None:
    async with tier() as up:
        assert (await up.generate(seed=123)).seed == 123
        drawn = await up.generate()
        assert drawn.seed == SEED
        assert list(drawn.sequences[0].token_ids) == expected_tokens(SEED, 0, 8)


async def test_usage_counts_prompt_cached_and_generated_tokens_of_all_sequences() -> None:
    async with tier() as up:
        answer = await up.generate(prompt="hello", n=3, max_tokens=4)
        assert answer.usage == api.Usage(prompt_tokens=5, completion_tokens=12, cached_prompt_tokens=2)
        cut = await up.generate(stop=[LETTERS[2:4]], max_tokens=50)
        assert cut.usage.completion_tokens == len(cut.sequences[0].token_ids) == 4


# ---- stop strings ------------------------------------------------------------------------------------------------


async def test_stop_string_cuts_and_aborts_that_sequence_at_the_executor() -> None:
    texts = [text_of(expected_tokens(SEED, index, 12)) for index in range(3)]
    stop = texts[1][4:7]
    assert stop not in texts[0] and stop not in texts[2]
    async with tier(FakeExecutor(auto=True)) as up:
        answer = await up.generate(n=3, max_tokens=12, stop=[stop])
        assert [s.text for s in answer.sequences] == [texts[0], texts[1][:4], texts[2]]
        cut = answer.sequences[1]
        assert (cut.finish_reason, cut.stop_string) == (api.FINISH_REASON_STOP, stop)
        assert list(cut.token_ids) == expected_tokens(SEED, 1, 7), "the tokens of the stop string are part of it"
        await up.executor.saw(lambda: len(up.executor.aborts) == 1)
        abort = up.executor.aborts[0]
        assert (abort.handle, abort.sequence_index) == (up.executor.submits[0].handle, 1)


async def test_last_sequence_that_a_stop_string_ends_aborts_the_request() -> None:
    async with tier(FakeExecutor(auto=True)) as up:
        answer = await up.generate(max_tokens=1000, stop=[LETTERS[1:3]])
        assert answer.sequences[0].text == LETTERS[:1]
        await up.executor.saw(lambda: len(up.executor.aborts) == 1)
        assert not up.executor.aborts[0].HasField("sequence_index")
        await up.executor.saw(lambda: not up.executor.num_aboard)


async def test_stop_token_ends_and_is_told() -> None:
    tokens = expected_tokens(SEED, 0, 5)
    async with tier() as up:
        sequence = (await up.generate(stop_token_ids=[tokens[4]], max_tokens=50)).sequences[0]
        assert list(sequence.token_ids) == tokens
        assert (sequence.finish_reason, sequence.stop_token_id) == (api.FINISH_REASON_STOP, tokens[4])
        assert sequence.text == text_of(tokens[:4]) and not sequence.HasField("stop_string")


# ---- what a request can and cannot say ---------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", ["a", "A-b_c.9", "x" * 128])
async def test_request_id_is_kept(request_id: str) -> None:
    async with tier() as up:
        assert (await up.generate(request_id=request_id)).request_id == request_id
        assert (await up.stream(request_id=request_id).read()).messages[0].start.request_id == request_id


async def test_request_id_is_drawn_where_there_is_none() -> None:
    async with tier() as up:
        drawn = {(await up.generate(max_tokens=1)).request_id for _ in range(3)}
        assert len(drawn) == 3 and all(re.fullmatch("[0-9a-f]{32}", name) for name in drawn)


INVALID = {
    "request_id-space": ({"request_id": "a b"}, ErrorReason.ERROR_REASON_INVALID_FIELD, "request_id"),
    "request_id-long": ({"request_id": "x" * 129}, ErrorReason.ERROR_REASON_INVALID_FIELD, "request_id"),
    "request_id-line": ({"request_id": "a\n"}, ErrorReason.ERROR_REASON_INVALID_FIELD, "request_id"),
    "priority-low": ({"priority": -1001}, ErrorReason.ERROR_REASON_INVALID_FIELD, "priority"),
    "priority-high": ({"priority": 1001}, ErrorReason.ERROR_REASON_INVALID_FIELD, "priority"),
    "truncate-0": (
        {"truncate_prompt_tokens": 0},
        ErrorReason.ERROR_REASON_SAMPLING_OUT_OF_RANGE,
        "sampling.truncate_prompt_tokens",
    ),
    "token-id": ({"prompt": [1, 1000]}, ErrorReason.ERROR_REASON_TOKEN_OUT_OF_RANGE, "prompt"),
    "no-text": ({"prompt": ""}, ErrorReason.ERROR_REASON_EMPTY_PROMPT, None),
    "no-ids": ({"prompt": []}, ErrorReason.ERROR_REASON_EMPTY_PROMPT, None),
    "sampling": ({"temperature": float("nan")}, ErrorReason.ERROR_REASON_SAMPLING_OUT_OF_RANGE, None),
    "length": ({"max_tokens": 2**31}, ErrorReason.ERROR_REASON_TOO_LONG, None),
}


@pytest.mark.parametrize("case", INVALID)
async def test_mistake_is_refused_with_its_reason_and_field_and_reaches_no_executor(case: str) -> None:
    fields, reason, field = INVALID[case]
    async with tier() as up:
        for error in (await error_of(up.generate(**fields)), await up.stream(**fields).error()):
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", reason)
            assert [name for name, _ in error.fields] == ([field] if field else [])
        assert not up.executor.submits


@pytest.mark.parametrize("priority", [-1000, 0, 1000])
async def test_priority_travels_to_the_executor(priority: int) -> None:
    async with tier() as up:
        await up.generate(priority=priority)
        assert up.executor.submits[0].priority == priority


@pytest.mark.parametrize(("num", "kept"), [(1, "o"), (2, "lo"), (5, "hello"), (9, "hello")])
async def test_prompt_is_cut_to_its_last_tokens(num: int, kept: str) -> None:
    async with tier() as up:
        answer = await up.generate(prompt="hello", truncate_prompt_tokens=num)
        assert list(up.executor.submits[0].prompt_token_ids) == [ord(c) for c in kept]
        assert answer.usage.prompt_tokens == len(kept)


@pytest.mark.parametrize("name", ["", "tiny", "also-tiny"])
async def test_served_names_and_none_are_the_model(name: str) -> None:
    async with tier() as up:
        await up.generate(model=name, max_tokens=1)


@pytest.mark.parametrize("name", ["other", "Tiny", "tiny ", "x" * 5000])
async def test_other_names_are_not_found_and_not_repeated_at_length(name: str) -> None:
    async with tier() as up:
        error = await error_of(up.generate(model=name))
        assert (error.code, error.reason) == ("NOT_FOUND", ErrorReason.ERROR_REASON_MODEL_NOT_FOUND)
        assert error.message == f"no model {name[:128]!r} is served here"


async def test_token_ids_are_not_sent_through_the_threads() -> None:
    async with tier() as up:
        threads = up.server._threads
        threads.close()  # whatever is sent there now fails
        assert (await up.generate(prompt=[1, 2, 3], max_tokens=1)).usage.prompt_tokens == 3


async def test_defect_gives_internal_without_details_and_the_next_request_is_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with tier() as up:
        up.preprocessor.encode, encode = None, up.preprocessor.encode
        error = await error_of(up.generate())
        up.preprocessor.encode = encode
        assert (error.code, error.reason) == ("INTERNAL", ErrorReason.ERROR_REASON_INTERNAL)
        assert error.message == "an internal error; the server's log has the details"
        assert "TypeError" in caplog.text and up.ledger.failed == 1
        await up.generate()


async def test_text_is_refused_by_its_length_unless_it_is_to_be_cut() -> None:
    async with tier() as up:
        await up.generate(prompt="hello")
        assert up.preprocessor.last_limit == up.executor.max_model_len
        await up.generate(prompt="hello", truncate_prompt_tokens=2)
        assert up.preprocessor.last_limit is None
