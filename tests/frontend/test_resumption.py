"""A request whose executor is lost goes on from its last token on another one, and its client does not notice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1.errors_pb2 import ErrorReason
from tests.frontend.doubles import text_of
from tests.frontend.fake_executor import FakeExecutor, expected_tokens
from tests.frontend.harness import Stream, Tier, error_of, tier, until

SEED = 42
NUM_TOKENS = 6


async def killed(executor: FakeExecutor) -> None:
    await executor.kill()


async def stream_broken(executor: FakeExecutor) -> None:
    executor.break_sessions()


async def stream_ended(executor: FakeExecutor) -> None:
    for session in executor.sessions:
        session.outgoing.put_nowait(None)


async def says_that_it_is_lost(executor: FakeExecutor) -> None:
    for session in executor.sessions:
        session.send(rejected=wire.Rejected(reason=ErrorReason.ERROR_REASON_EXECUTOR_LOST, message="CUDA error"))


def tampering(change: Callable[[wire.StepFrame], None]) -> Callable:
    """A fault of an executor whose next frame is changed."""

    async def fault(executor: FakeExecutor) -> None:
        def tamper(frame: wire.StepFrame) -> list[wire.StepFrame]:
            change(frame)
            return [frame]

        executor.tamper = tamper
        await executor.step()

    return fault


def leave_gap(frame: wire.StepFrame) -> None:
    frame.token_indexes[0] += 1


def leave_vocabulary(frame: wire.StepFrame) -> None:
    frame.token_ids[-1] = 1000


def lose_a_list_entry(frame: wire.StepFrame) -> None:
    del frame.epochs[-1]


def lose_logprobs(frame: wire.StepFrame) -> None:
    del frame.logprobs[0]


FAULTS = {
    "killed": killed,
    "stream-broken": stream_broken,
    "stream-ended": stream_ended,
    "says-lost": says_that_it_is_lost,
    "gap": tampering(leave_gap),
    "out-of-vocabulary": tampering(leave_vocabulary),
    "unequal-lists": tampering(lose_a_list_entry),
    "no-logprobs": tampering(lose_logprobs),
}


async def holder_first(up: Tier) -> list[FakeExecutor]:
    """The executors, the one that has the request first."""
    await until(lambda: any(executor.num_aboard for executor in up.executors))
    return sorted(up.executors, key=lambda executor: -executor.num_aboard)


def check_whole(stream: Stream, num_sequences: int = 1, num: int = NUM_TOKENS) -> None:
    """Nothing is lost, repeated or changed."""
    for index in range(num_sequences):
        want = expected_tokens(SEED, index, num)
        assert (stream.token_ids(index), stream.text(index)) == (want, text_of(want))
        assert sum(delta.finish_reason != 0 for delta in stream.deltas(index)) == 1
    assert stream.messages[-1].usage.completion_tokens == num * num_sequences


@pytest.mark.parametrize("num_before", range(NUM_TOKENS))
@pytest.mark.parametrize("fault", FAULTS)
async def test_stream_goes_on_elsewhere_whenever_its_executor_is_lost(fault: str, num_before: int) -> None:
    async with tier(FakeExecutor(), FakeExecutor()) as up:
        stream = up.stream(n=2, max_tokens=NUM_TOKENS, logprobs=1)
        lost, other = await holder_first(up)
        await lost.step(num_before)
        await stream.read(until_tokens=num_before)
        await FAULTS[fault](lost)
        await other.saw(lambda: other.num_aboard == 1)
        resumed = other.submits[0]
        assert resumed.epoch == 2
        for part in resumed.resumed:
            assert list(part.token_ids) == expected_tokens(SEED, part.sequence_index, len(part.token_ids))
            assert len(part.token_ids) in (num_before, num_before + 1)
            assert part.finished == (len(part.token_ids) == NUM_TOKENS)
        await other.step(NUM_TOKENS)
        check_whole(await stream.read(), num_sequences=2)
        for index in range(2):
            logprobs = [entry for delta in stream.deltas(index) for entry in delta.logprobs]
            assert [entry.logprob for entry in logprobs] == [-i - 0.5 for i in range(NUM_TOKENS)]


async def test_tokens_that_the_client_has_not_read_are_not_generated_again() -> None:
    async with tier(FakeExecutor(), FakeExecutor()) as up:
        stream = up.stream(max_tokens=NUM_TOKENS)
        lost, other = await holder_first(up)
        await lost.step(4)
        flights = up.server.dispatcher._clients[lost.address]._demultiplexer.flights
        await until(lambda: len(flights[1].token_ids[0]) == 4)
        await lost.kill()
        await other.saw(lambda: other.num_aboard == 1)
        assert [list(part.token_ids) for part in other.submits[0].resumed] == [expected_tokens(SEED, 0, 4)]
        await other.step(2)
        check_whole(await stream.read())


async def test_sequences_that_ended_are_not_run_again() -> None:
    texts = [text_of(expected_tokens(SEED, index, NUM_TOKENS)) for index in range(3)]
    stop = texts[1][1:3]
    assert stop not in texts[0] + " " + texts[2]
    async with tier(FakeExecutor(), FakeExecutor()) as up:
        stream = up.stream(n=3, max_tokens=NUM_TOKENS, stop=[stop])
        lost, other = await holder_first(up)
        await lost.step(4)
        await lost.saw(lambda: len(lost.aborts) == 1)
        await stream.read(until_tokens=4)
        await lost.kill()
        await other.saw(lambda: other.num_aboard == 1)
        assert [(part.sequence_index, part.finished) for part in other.submits[0].resumed] == [
            (0, False), (1, True), (2, False),
        ]  # fmt: skip
        await other.step(2)
        await stream.read()
        assert [stream.text(index) for index in range(3)] == [texts[0], texts[1][:1], texts[2]]


async def test_prompt_logprobs_that_were_half_known_come_whole() -> None:
    async with tier(FakeExecutor(), FakeExecutor()) as up:
        stream = up.stream(prompt=[1, 2, 3, 4, 5, 6], max_tokens=NUM_TOKENS, prompt_logprobs=0)
        lost, other = await holder_first(up)

        def only_the_beginning(frame: wire.StepFrame) -> list[wire.StepFrame]:
            first = frame.prompt_logprobs[0]
            return [wire.StepFrame(step=1, prompt_logprobs=[first])]

        lost.tamper = only_the_beginning
        await lost.step()
        await lost.kill()
        await other.saw(lambda: other.num_aboard == 1)
        await other.step(NUM_TOKENS)
        check_whole(await stream.read())
        assert [entry.logprob for entry in stream.messages[0].start.prompt_logprobs] == [-1, -2, -3, -4, -5]


async def test_unary_call_does_not_notice_either() -> None:
    async with tier(FakeExecutor(), FakeExecutor()) as up:
        call = asyncio.create_task(up.generate(max_tokens=NUM_TOKENS))
        lost, other = await holder_first(up)
        await lost.step(3)
        await lost.kill()
        await other.saw(lambda: other.num_aboard == 1)
        await other.step(NUM_TOKENS)
        answer = await call
        assert list(answer.sequences[0].token_ids) == expected_tokens(SEED, 0, NUM_TOKENS)


async def test_only_executor_that_comes_back_goes_on() -> None:
    async with tier(FakeExecutor(), executor_wait_s=60.0) as up:
        stream = up.stream(max_tokens=NUM_TOKENS)
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        await up.executor.step(3)
        await stream.read(until_tokens=3)
        await up.executor.kill()
        await up.until_ready(0)
        assert not await up.serving()
        await up.executor.start()
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        await up.executor.step(3)
        check_whole(await stream.read())
        await until(lambda: up.server.dispatcher.ready)


async def test_request_whose_only_executor_stays_away_fails_with_what_it_has() -> None:
    async with tier(FakeExecutor(), executor_wait_s=0.1) as up:
        stream = up.stream(max_tokens=NUM_TOKENS)
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        await up.executor.step(3)
        await stream.read(until_tokens=3)
        await up.executor.kill()
        error = await stream.error()
        assert (error.code, error.reason) == ("UNAVAILABLE", ErrorReason.ERROR_REASON_EXECUTOR_LOST)
        assert error.retry_after_ms == 1000 and "no other executor could take over" in error.message
        assert stream.token_ids() == expected_tokens(SEED, 0, 3)


async def test_request_that_no_executor_ever_had_fails_as_such() -> None:
    async with tier(FakeExecutor(), executor_wait_s=0.1) as up:
        await up.executor.kill()
        await up.until_ready(0)
        error = await error_of(up.generate())
        assert (error.code, error.reason) == ("UNAVAILABLE", ErrorReason.ERROR_REASON_NO_EXECUTOR)


async def test_request_that_takes_executors_down_stops_after_two() -> None:
    async with tier(*(FakeExecutor() for _ in range(4))) as up:
        for executor in up.executors:
            executor.on_submit = lambda submit, executor=executor: executor.break_sessions()
        error = await error_of(up.generate())
        assert (error.code, error.reason) == ("UNAVAILABLE", ErrorReason.ERROR_REASON_EXECUTOR_LOST)
        assert "two executors were lost" in error.message
        assert sum(len(executor.submits) for executor in up.executors) == 2


async def test_executor_that_serves_wrongly_is_given_another_chance_only_when_it_is_alone() -> None:
    async with tier(FakeExecutor()) as up:
        stream = up.stream(max_tokens=NUM_TOKENS)
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        await FAULTS["gap"](up.executor)
        await up.executor.saw(lambda: len(up.executor.submits) == 2)
        up.executor.tamper = lambda frame: [frame]
        await up.executor.step(NUM_TOKENS)
        check_whole(await stream.read())
        assert up.executor.num_sessions == 1


async def test_losses_of_executors_that_said_goodbye_are_not_held_against_a_request() -> None:
    async with tier(*(FakeExecutor() for _ in range(4))) as up:
        stream, left = up.stream(max_tokens=NUM_TOKENS), list(up.executors)
        for _ in range(3):
            await until(lambda: any(executor.num_aboard for executor in left))
            holder = max(left, key=lambda executor: executor.num_aboard)
            left.remove(holder)
            await holder.step()
            holder.drain()
            await up.until_ready(len(left))
            await holder.kill()
        await left[0].saw(lambda: left[0].num_aboard == 1)
        await left[0].step(NUM_TOKENS)
        check_whole(await stream.read())


async def test_stalled_executor_is_left() -> None:
    async with tier(FakeExecutor(), FakeExecutor(), session={"stall_s": 0.5}) as up:
        stream = up.stream(max_tokens=NUM_TOKENS)
        stalled, other = await holder_first(up)
        other.auto = True
        await stalled.step(2)
        check_whole(await stream.read())
        assert len(other.submits) == 1


async def test_executor_without_requests_is_not_stalled() -> None:
    async with tier(FakeExecutor(lease_ms=30), session={"stall_s": 0.02}) as up:
        renews = up.executor.num_renews
        await up.executor.saw(lambda: up.executor.num_renews >= renews + 10)  # several times the limit
        assert up.executor.num_sessions == 1


async def test_frames_of_another_life_are_dropped() -> None:
    async with tier(FakeExecutor()) as up:

        def haunted(frame: wire.StepFrame) -> list[wire.StepFrame]:
            zombies = [wire.StepFrame.FromString(frame.SerializeToString()) for _ in range(3)]
            zombies[0].epochs[0] += 1
            zombies[1].handles[0] += 1000
            for finish in zombies[1].finishes:
                finish.handle += 1000
            for zombie in zombies[:2]:
                zombie.token_ids[0] = 999
                zombie.token_indexes[0] = 0
            return [zombies[0], zombies[1], frame, zombies[2]]

        up.executor.tamper = haunted
        up.executor.auto = True
        check_whole(await up.stream(max_tokens=NUM_TOKENS).read())
