"""Several executors serve as one: they share the load, refuse without harm, and come and go."""

from __future__ import annotations

import logging

import grpc
import pytest

from forebay.block_hash import block_digests, short_hash
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1.errors_pb2 import ErrorReason
from frontend.executor_client import State
from tests.frontend.fake_executor import FakeExecutor, expected_tokens
from tests.frontend.harness import Tier, error_of, tier, until

SEED = 42
LONG_PROMPT = [i % 900 for i in range(200)]

QUEUE_FULL = wire.Rejected(
    reason=ErrorReason.ERROR_REASON_QUEUE_FULL,
    code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
    message="16 sequences wait",
    retry_after_ms=20,
)
DRAINING = wire.Rejected(
    reason=ErrorReason.ERROR_REASON_DRAINING, code=grpc.StatusCode.UNAVAILABLE.value[0], retry_after_ms=20
)
INVALID = wire.Rejected(
    reason=ErrorReason.ERROR_REASON_INVALID_FIELD, code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="no"
)


def num_submits(up: Tier) -> list[int]:
    return [len(executor.submits) for executor in up.executors]


def client_of(up: Tier, executor: FakeExecutor):
    return up.server.dispatcher._clients[executor.address]


# ---- who gets what -----------------------------------------------------------------------------------------------


async def test_executors_share_the_load() -> None:
    async with tier(FakeExecutor(), FakeExecutor(), FakeExecutor()) as up:
        streams = [up.stream(prompt=f"{number}", max_tokens=1) for number in range(12)]
        await until(lambda: sum(num_submits(up)) == 12)
        assert num_submits(up) == [4, 4, 4]
        for executor in up.executors:
            executor.auto = True
        for stream in streams:
            assert (await stream.read()).token_ids() == expected_tokens(SEED, 0, 1)


async def test_load_that_other_frontends_make_counts() -> None:
    async with tier(FakeExecutor(), FakeExecutor()) as up:
        busy, idle = up.executors
        busy.extra_load = 50
        first = [up.stream(prompt=f"{number}", max_tokens=2) for number in range(2)]
        await until(lambda: num_submits(up) == [1, 1])
        await busy.step()
        await until(lambda: client_of(up, busy).load._num_others_sequences == 50)
        more = [up.stream(prompt=f"{number}", max_tokens=2) for number in range(10)]
        await until(lambda: num_submits(up) == [1, 11])
        busy.auto = idle.auto = True
        for stream in first + more:
            await stream.read()


async def test_requests_with_the_same_beginning_go_to_the_same_executor() -> None:
    async with tier(*(FakeExecutor(auto=True) for _ in range(3))) as up:
        for _ in range(8):
            await up.generate(prompt=LONG_PROMPT)
        assert sorted(num_submits(up)) == [0, 0, 8]


async def test_prefix_that_an_executor_reports_draws_requests_there() -> None:
    async with tier(*(FakeExecutor(auto=True) for _ in range(3))) as up:
        holder = up.executors[1]
        frame = wire.StepFrame(step=1)
        frame.cache_events.stored.extend(short_hash(d) for d in block_digests(LONG_PROMPT, holder.block_size))
        for session in holder.sessions:
            session.send(step=frame)
        await until(lambda: len(client_of(up, holder).load.prefixes) == 50)
        for number in range(4):
            await up.generate(prompt=[*LONG_PROMPT, number])
        assert num_submits(up) == [0, 4, 0]


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rejected", [QUEUE_FULL, DRAINING], ids=["full", "draining"])
async def test_executor_that_has_no_room_sends_the_request_to_the_next(rejected: wire.Rejected) -> None:
    async with tier(FakeExecutor(auto=True), FakeExecutor(auto=True), FakeExecutor(auto=True)) as up:
        for executor in up.executors[:2]:
            executor.rejects_all = rejected
        for _ in range(5):
            assert list((await up.generate()).sequences[0].token_ids) == expected_tokens(SEED, 0, 8)
        assert num_submits(up)[2] == 5 and not up.ledger.failed


async def test_full_everywhere_is_told_with_the_executors_own_words() -> None:
    async with tier(FakeExecutor(), FakeExecutor()) as up:
        for executor in up.executors:
            executor.rejects_all = QUEUE_FULL
        error = await error_of(up.generate())
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", ErrorReason.ERROR_REASON_QUEUE_FULL)
        assert (error.message, error.retry_after_ms) == ("16 sequences wait", 20)
        assert num_submits(up) == [1, 1]


async def test_request_that_has_tokens_waits_for_room_instead_of_failing() -> None:
    async with tier(FakeExecutor(), executor_wait_s=60.0) as up:
        stream = up.stream(max_tokens=6)
        await up.executor.saw(lambda: up.executor.num_aboard == 1)
        await up.executor.step(2)
        await stream.read(until_tokens=2)
        up.executor.rejects_all = QUEUE_FULL
        up.executor.break_sessions()
        await up.executor.saw(lambda: len(up.executor.submits) >= 4)  # it asks again and again
        up.executor.rejects_all, up.executor.auto = None, True
        assert (await stream.read()).token_ids() == expected_tokens(SEED, 0, 6)


async def test_executors_that_only_refuse_are_given_up_after_the_wait() -> None:
    async with tier(FakeExecutor(), executor_wait_s=0.1) as up:
        up.executor.rejects_all = DRAINING
        error = await error_of(up.generate())
        assert (error.code, error.reason) == ("UNAVAILABLE", ErrorReason.ERROR_REASON_NO_EXECUTOR)
        assert error.retry_after_ms == 1000


async def test_refusal_for_good_is_the_clients_and_is_not_tried_elsewhere() -> None:
    async with tier(FakeExecutor(), FakeExecutor()) as up:
        for executor in up.executors:
            executor.rejects_all = INVALID
        error = await error_of(up.generate())
        assert (error.code, error.reason, error.message) == (
            "INVALID_ARGUMENT", ErrorReason.ERROR_REASON_INVALID_FIELD, "no",
        )  # fmt: skip
        assert sum(num_submits(up)) == 1


async def test_refusal_with_a_code_that_does_not_exist_is_internal() -> None:
    async with tier(FakeExecutor()) as up:
        up.executor.rejection = wire.Rejected(code=77, message="?")
        error = await error_of(up.generate())
        assert (error.code, error.reason) == ("INTERNAL", ErrorReason.ERROR_REASON_INTERNAL)


async def test_request_that_ends_by_an_error_while_it_runs_ends_alone() -> None:
    async with tier(FakeExecutor()) as up:
        bad, good = up.stream(prompt=[1], max_tokens=4), up.stream(prompt=[2], max_tokens=4)
        await up.executor.saw(lambda: up.executor.num_aboard == 2)
        await up.executor.step(2)
        await bad.read(until_tokens=2)
        session = next(iter(up.executor.sessions))
        handle = next(submit.handle for submit in up.executor.submits if submit.prompt_token_ids[0] == 1)
        del session.requests[handle]
        session.send(
            rejected=wire.Rejected(
                handle=handle,
                code=grpc.StatusCode.ABORTED.value[0],
                reason=ErrorReason.ERROR_REASON_NUMERIC,
                message="not a number",
            )
        )
        await up.executor.step(2)
        error = await bad.error()
        assert (error.code, error.reason) == ("ABORTED", ErrorReason.ERROR_REASON_NUMERIC)
        assert (await good.read()).token_ids() == expected_tokens(SEED, 0, 4)


# ---- who is let in -----------------------------------------------------------------------------------------------


async def test_draining_executor_finishes_what_it_has_and_gets_nothing_new() -> None:
    async with tier(FakeExecutor(), FakeExecutor()) as up:
        old = up.stream(max_tokens=2)
        await until(lambda: sum(num_submits(up)) == 1)
        leaving, staying = sorted(up.executors, key=lambda executor: -executor.num_aboard)
        leaving.drain()
        await up.until_ready(1)
        staying.auto = True
        for _ in range(4):
            await up.generate()
        await leaving.step(2)
        assert (await old.read()).token_ids() == expected_tokens(SEED, 0, 2)
        assert (len(leaving.submits), len(staying.submits)) == (1, 4)


async def test_executor_that_drains_from_the_beginning_is_not_used() -> None:
    leaving = FakeExecutor()
    leaving.draining = True
    async with tier(leaving, FakeExecutor(auto=True), ready=1) as up:
        await leaving.saw(lambda: leaving.num_sessions == 1)
        await up.generate()
        assert num_submits(up) == [0, 1]


@pytest.mark.parametrize("name", ["model_digest", "tokenizer_digest"])
@pytest.mark.parametrize("who", ["executor", "frontend"])
async def test_executor_with_another_model_is_logged_and_not_served(
    name: str, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = FakeExecutor(auto=True, **{name: "other"})
    wrong.checks_fingerprint = who == "executor"  # else the frontend finds it in Welcome
    async with tier(wrong, FakeExecutor(auto=True), ready=1) as up:
        await until(lambda: client_of(up, wrong).state is State.REFUSED)
        await until(lambda: "is refused" in caplog.text)
        for _ in range(4):
            await up.generate()
        assert num_submits(up) == [0, 4]
        record = next(r for r in caplog.records if "is refused" in r.getMessage())
        assert record.levelno == logging.ERROR and name in record.getMessage() and wrong.address in record.getMessage()


async def test_executor_that_was_refused_is_served_once_it_fits() -> None:
    executor = FakeExecutor(auto=True, model_digest="other")
    async with tier(executor, ready=0) as up:
        await until(lambda: client_of(up, executor).state is State.REFUSED)
        executor.fingerprint.model_digest = "digest"
        await up.until_ready(1)
        await up.generate()


@pytest.mark.parametrize("difference", [{"vocab_size": 999}, {"max_model_len": 50_000}], ids=str)
async def test_executors_must_agree_with_each_other(difference: dict, caplog: pytest.LogCaptureFixture) -> None:
    first, other = FakeExecutor(auto=True), FakeExecutor(auto=True, **difference)
    async with tier(first, other, ready=1) as up:
        await until(lambda: "its model is not the one of executor" in caplog.text)
        await up.generate()
        assert up.server.dispatcher.num_ready == 1
