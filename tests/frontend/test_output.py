"""A client gets every token and letter once, however it reads; one that does not read is cut off, and only it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import ForebayError, Unavailable
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import generation_pb2 as api
from forebay.v1.errors_pb2 import ErrorReason
from frontend.output import Output
from tests.frontend.doubles import FakeText, text_of

LENGTH = wire.SequenceFinish(reason=wire.SEQUENCE_FINISH_REASON_LENGTH)


def stop_token(token_id: int) -> wire.SequenceFinish:
    return wire.SequenceFinish(reason=wire.SEQUENCE_FINISH_REASON_STOP, stop_token_id=token_id)


def output_of(num_sequences: int = 1, *, stop: tuple[str, ...] = (), max_unsent_bytes: int | None = 10_000) -> Output:
    texts = [
        FakeText(None, stop=stop, skip_special_tokens=True, include_stop_str_in_output=False, min_tokens=0)
        for _ in range(num_sequences)
    ]
    return Output(texts, [90, 91, 92, 93], max_unsent_bytes=max_unsent_bytes)


def entries(num: int, num_top: int = 0) -> list[wire.TokenLogprobs]:
    return [
        wire.TokenLogprobs(logprob=-float(i), rank=i + 1, top_ids=[7] * num_top, top_logprobs=[-0.5] * num_top)
        for i in range(num)
    ]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_deltas_that_were_not_taken_are_one_delta_per_sequence() -> None:
    output = output_of(2)
    assert not output.push(1, [1], None, None)
    output.push(0, [2, 3], None, None)
    output.push(1, [4], None, None)
    deltas = [(delta.index, delta.text, list(delta.token_ids)) for delta in output.take()]
    assert deltas == [(0, "cd", [2, 3]), (1, "be", [1, 4])]
    assert output.take() == [] and output.num_tokens == 4


@pytest.mark.parametrize(
    ("finish", "reason", "stop_token_id"),
    [(LENGTH, api.FINISH_REASON_LENGTH, None), (stop_token(5), api.FINISH_REASON_STOP, 5)],
    ids=["length", "stop-token"],
)
async def test_executor_ends_a_sequence(finish: wire.SequenceFinish, reason: int, stop_token_id: int | None) -> None:
    output = output_of()
    assert not output.push(0, [4, 5], None, finish), "the executor knows"
    delta = output.take()[0]
    assert output.done and delta.finish_reason == reason and list(delta.token_ids) == [4, 5]
    assert delta.text == ("e" if stop_token_id else "ef")
    assert (delta.stop_token_id if delta.HasField("stop_token_id") else None) == stop_token_id


async def test_text_that_was_held_back_comes_with_the_end() -> None:
    output = output_of(stop=("cd",))
    output.push(0, [0, 2], None, None)
    assert output.take()[0].text == "a"
    output.push(0, [], None, LENGTH)
    assert output.take()[0].text == "c"


async def test_stop_string_cuts_text_tokens_and_logprobs_and_ends_the_sequence_here() -> None:
    output = output_of(stop=("cd",))
    assert output.push(0, [0, 2, 3, 4, 5], entries(5, num_top=2), LENGTH)
    delta = output.take()[0]
    assert (delta.text, list(delta.token_ids)) == ("a", [0, 2, 3])
    assert (delta.finish_reason, delta.stop_string) == (api.FINISH_REASON_STOP, "cd")
    assert [(entry.token_id, entry.rank, list(entry.top_ids)) for entry in delta.logprobs] == [
        (0, 1, [7, 7]),
        (2, 2, [7, 7]),
        (3, 3, [7, 7]),
    ]
    assert output.done and output.num_tokens == 3


async def test_reader_of_a_stream_wakes_for_each_delta_and_one_of_a_unary_call_for_the_end() -> None:
    stream, unary = output_of(2), output_of(2, max_unsent_bytes=None)
    waits = [asyncio.create_task(output.ready()) for output in (stream, unary)]
    await settle()
    for output in (stream, unary):
        output.push(0, [1], None, LENGTH)
        output.flush()
    await settle()
    assert [task.done() for task in waits] == [True, False]
    unary.push(1, [1], None, LENGTH)
    unary.flush()
    await asyncio.wait_for(waits[1], 1)


async def test_nothing_is_ready_before_the_prompt_logprobs_are() -> None:
    output = output_of()
    output.awaits_prompt_logprobs = True
    waiting = asyncio.create_task(output.ready())
    output.push(0, [1], None, LENGTH)
    output.flush()
    await settle()
    assert not waiting.done()
    parts = [
        wire.PromptLogprobs(first_position=1, logprobs=[-1.0], ranks=[1], num_top=1, top_ids=[8], top_logprobs=[-0.5]),
        wire.PromptLogprobs(
            first_position=2,
            logprobs=[-2.0, -3.0],
            ranks=[2, 3],
            num_top=2,
            top_ids=[1, 2, 3, 4],
            top_logprobs=[-1.0] * 4,
        ),
    ]
    output.prompt_logprobs_done(parts)
    await asyncio.wait_for(waiting, 1)
    found = [(e.token_id, e.logprob, e.rank, list(e.top_ids)) for e in output.prompt_logprobs]
    assert found == [(91, -1.0, 1, [8]), (92, -2.0, 2, [1, 2]), (93, -3.0, 3, [3, 4])]


async def test_first_error_counts_and_comes_after_what_is_pending() -> None:
    output = output_of()
    output.push(0, [1], None, None)
    waiting = asyncio.create_task(output.ready())
    output.fail(Unavailable("first"))
    output.fail(ForebayError("second"))
    await asyncio.wait_for(waiting, 1)
    assert output.error.message == "first" and len(output.take()) == 1


async def test_interrupt_forgets_what_is_pending_and_breaks_a_write_off() -> None:
    output = output_of()
    output.push(0, [1], None, None)
    output.writer = writer = asyncio.create_task(asyncio.Event().wait())
    await settle()
    output.interrupt(Unavailable("stop"))
    output.interrupt(Unavailable("stop again"))
    await asyncio.wait({writer}, timeout=1)
    assert writer.cancelled() and writer.cancelling() == 1 and output.interrupted
    assert output.take() == [] and output.error.message == "stop"


async def test_interrupt_without_a_write_under_way_cancels_nobody() -> None:
    output = output_of()
    output.interrupt(Unavailable("stop"))
    assert not output.interrupted and output.error.message == "stop"


async def test_client_that_does_not_read_is_cut_off_at_the_limit() -> None:
    output = output_of(max_unsent_bytes=50)
    output.writer = writer = asyncio.create_task(asyncio.Event().wait())
    for _ in range(10):  # a letter and an id of four bytes each
        output.push(0, [1], None, None)
    assert output.error is None
    output.push(0, [1], None, None)
    assert output.error.reason == ErrorReason.ERROR_REASON_SLOW_READER and output.error.code == "RESOURCE_EXHAUSTED"
    await asyncio.wait({writer}, timeout=1)
    assert writer.cancelled()


async def test_logprobs_count_as_unsent_output() -> None:
    output = output_of(max_unsent_bytes=100)
    output.writer = asyncio.create_task(asyncio.Event().wait())
    output.push(0, [1], entries(1, num_top=8), None)
    assert output.error is not None


async def test_reader_that_keeps_up_can_read_any_amount() -> None:
    output = output_of(max_unsent_bytes=50)
    output.writer = asyncio.current_task()
    for _ in range(1000):
        output.push(0, [1], None, None)
        output.take()
    assert output.error is None and output.num_tokens == 1000


async def test_unary_call_waits_for_everything_whatever_its_size() -> None:
    output = output_of(max_unsent_bytes=None)
    output.writer = asyncio.current_task()
    output.push(0, [1] * 100_000, None, LENGTH)
    assert output.error is None and len(output.take()[0].token_ids) == 100_000


@given(
    pushes=st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 25), max_size=5), st.booleans()), max_size=20)
)
def test_what_is_taken_is_what_was_pushed_whenever_it_is_taken(pushes: list[tuple[int, list[int], bool]]) -> None:
    output, taken = output_of(3), []
    want: list[list[int]] = [[], [], []]
    for index, token_ids, take in pushes:
        output.push(index, token_ids, None, None)
        want[index] += token_ids
        if take:
            taken += output.take()
    for index in range(3):
        output.push(index, [], None, LENGTH)
    taken += output.take()
    for index, token_ids in enumerate(want):
        mine = [delta for delta in taken if delta.index == index]
        assert [token_id for delta in mine for token_id in delta.token_ids] == token_ids
        assert "".join(delta.text for delta in mine) == text_of(token_ids)
        assert [delta.finish_reason for delta in mine if delta.finish_reason] == [api.FINISH_REASON_LENGTH]
    assert output.done and output.num_tokens == sum(map(len, want))
