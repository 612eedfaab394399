"""The ledger balances whatever happens, the queue is served by priority then arrival, and refusals say when to return."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.errors import AlreadyExists, ForebayError, ResourceExhausted, Unavailable
from forebay.v1.errors_pb2 import ErrorReason
from frontend.admission import MAX_RETRY_MS, MIN_RETRY_MS, Admission, Outcome, Ticket
from tests.frontend.fake_executor import FakeExecutor
from tests.frontend.harness import error_of, tier, until

MAX_RUNNING, MAX_QUEUED = 2, 3


@dataclass
class Caller:
    """Someone who was let in: a ticket and the task that waits for its slot."""

    ticket: Ticket
    place: tuple[int, int]  # priority, arrival
    waiter: asyncio.Task[None]


class AdmissionMachine(RuleBasedStateMachine):
    """Drives an Admission beside a model of it: two lists of callers."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.admission = Admission(max_running=MAX_RUNNING, max_queued=MAX_QUEUED)
        self.running: list[Caller] = []
        self.queued: list[Caller] = []
        self.num_arrived = self.num_refused = 0
        self.ended = dict.fromkeys(Outcome, 0)

    def teardown(self) -> None:
        for caller in self.running + self.queued:
            caller.waiter.cancel()
        self._run()
        self.loop.close()

    @rule(priority=st.integers(-2, 2))
    def admit(self, priority: int) -> None:
        self.num_arrived += 1
        request_id = f"r{self.num_arrived}"
        full = len(self.running) >= MAX_RUNNING and len(self.queued) >= MAX_QUEUED
        if self.admission.draining or full:
            self.num_refused += 1
            with pytest.raises(Unavailable if self.admission.draining else ResourceExhausted) as caught:
                self._admit(request_id, priority)
            assert caught.value.retry_after_ms > 0
            return
        ticket = self._admit(request_id, priority)
        caller = Caller(ticket, (priority, self.num_arrived), self.loop.create_task(ticket.slot()))
        (self.running if len(self.running) < MAX_RUNNING else self.queued).append(caller)
        self._run()

    @precondition(lambda self: not self.admission.draining and self.running + self.queued)
    @rule(data=st.data())
    def admit_a_name_that_is_in_use(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.running + self.queued))
        self.num_arrived += 1
        self.num_refused += 1
        with pytest.raises(AlreadyExists):
            self._admit(caller.ticket.request_id, 0)

    @precondition(lambda self: self.running + self.queued)
    @rule(data=st.data(), outcome=st.sampled_from(Outcome), times=st.integers(1, 2))
    def close(self, data: st.DataObject, outcome: Outcome, times: int) -> None:
        caller = data.draw(st.sampled_from(self.running + self.queued))
        self._take_out(caller)
        caller.waiter.cancel()
        for _ in range(times):  # only the first call counts
            caller.ticket.close(outcome)
        self.ended[outcome] += 1
        self._run()

    @precondition(lambda self: self.queued)
    @rule(data=st.data())
    def waiter_is_cancelled_and_closes_later(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self.queued))
        caller.waiter.cancel()
        self._run()
        assert caller.waiter.cancelled() and caller.ticket.queued  # it holds its place until it is closed
        self._take_out(caller)
        caller.ticket.close(Outcome.CANCELLED)
        self.ended[Outcome.CANCELLED] += 1

    @rule()
    def drain(self) -> None:
        self.admission.draining = True

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        ledger = self.admission.ledger
        assert ledger.balanced
        assert (ledger.arrived, ledger.refused) == (self.num_arrived, self.num_refused)
        assert (ledger.running, ledger.queued) == (len(self.running), len(self.queued))
        assert {outcome: getattr(ledger, outcome.value) for outcome in Outcome} == self.ended

    @invariant()
    def those_may_run_whose_turn_it_is(self) -> None:
        assert all(caller.waiter.done() and not caller.ticket.queued for caller in self.running)
        assert all(not caller.waiter.done() and caller.ticket.queued for caller in self.queued)

    @invariant()
    def idle_means_that_nobody_is_in(self) -> None:
        idle = self.loop.create_task(self.admission.idle())
        self._run()
        assert idle.done() == (not self.running and not self.queued)
        idle.cancel()
        self._run()

    def _take_out(self, caller: Caller) -> None:
        """The model's side of a close: a slot that comes free goes to the first of the queue."""
        if caller in self.queued:
            self.queued.remove(caller)
            return
        self.running.remove(caller)
        while self.queued and len(self.running) < MAX_RUNNING:
            first = min(self.queued, key=lambda waiting: waiting.place)
            self.queued.remove(first)
            self.running.append(first)

    def _admit(self, request_id: str, priority: int) -> Ticket:
        async def admit() -> Ticket:
            return self.admission.admit(request_id, priority)

        return self.loop.run_until_complete(admit())

    def _run(self) -> None:
        """Lets every task go on as far as it can."""

        async def turn() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turn())


TestAdmissionMachine = AdmissionMachine.TestCase
TestAdmissionMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


async def test_queue_is_served_by_priority_then_arrival() -> None:
    admission = Admission(max_running=1, max_queued=10)
    first = admission.admit("first")
    waiting = [admission.admit(name, priority) for name, priority in [("a", 0), ("b", -1), ("c", 5), ("d", -1)]]
    order: list[str] = []

    async def take_turn(ticket: Ticket) -> None:
        await ticket.slot()
        order.append(ticket.request_id)
        ticket.close(Outcome.DONE)

    tasks = [asyncio.create_task(take_turn(ticket)) for ticket in waiting]
    first.close(Outcome.DONE)
    await asyncio.gather(*tasks)
    assert order == ["b", "d", "a", "c"]


async def test_full_queue_tells_clients_at_different_times_when_to_come_back() -> None:
    admission = Admission(max_running=1, max_queued=0)
    admission.admit("first")
    delays = set()
    for number in range(50):
        with pytest.raises(ResourceExhausted) as caught:
            admission.admit(f"r{number}")
        delays.add(caught.value.retry_after_ms)
    assert len(delays) > 10
    assert min(delays) >= MIN_RETRY_MS and max(delays) <= 1.5 * MAX_RETRY_MS


async def test_callers_that_left_are_not_kept_in_the_queue() -> None:
    admission = Admission(max_running=1, max_queued=10)
    admission.admit("first")
    for number in range(1000):
        admission.admit(f"r{number}").close(Outcome.CANCELLED)
    assert len(admission._queue) <= 20 and admission.ledger.balanced


async def test_slot_that_comes_as_its_caller_leaves_goes_to_the_next_one() -> None:
    admission = Admission(max_running=1, max_queued=2)
    first, leaving, staying = (admission.admit(name) for name in ("first", "leaving", "staying"))
    waiter = asyncio.create_task(leaving.slot())
    await asyncio.sleep(0)
    first.close(Outcome.DONE)  # `leaving` has the slot now
    waiter.cancel()  # and its caller does not know
    leaving.close(Outcome.CANCELLED)
    await asyncio.wait_for(staying.slot(), 1)
    staying.close(Outcome.DONE)
    assert admission.ledger.balanced and not admission.ledger.in_flight


async def test_full_queue_is_refused_with_retry_info_and_pushback_over_grpc() -> None:
    async with tier(FakeExecutor(), max_concurrent_requests=1, max_queue_size=1) as up:
        running, queued = up.stream(max_tokens=1), up.stream(max_tokens=1)
        await until(lambda: (up.ledger.running, up.ledger.queued) == (1, 1))
        call = up.stream(max_tokens=1)
        error = await call.error()
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", ErrorReason.ERROR_REASON_QUEUE_FULL)
        assert error.message == "1 requests run and 1 wait, which is the limit"
        pushback = dict(await call.call.trailing_metadata())["grpc-retry-pushback-ms"]
        assert error.retry_after_ms == int(pushback) >= MIN_RETRY_MS
        up.executor.auto = True
        await running.read()
        await queued.read()
        assert (up.ledger.refused, up.ledger.done) == (1, 2)


async def test_name_that_is_in_use_is_refused_and_free_again_at_the_end() -> None:
    async with tier(FakeExecutor()) as up:
        running = up.stream(request_id="mine", max_tokens=1)
        await up.executor.saw(lambda: len(up.executor.submits) == 1)
        error: ForebayError = await error_of(up.generate(request_id="mine"))
        assert (error.code, error.reason) == ("ALREADY_EXISTS", ErrorReason.ERROR_REASON_DUPLICATE_REQUEST)
        assert error.message == "a request with request_id 'mine' is running"
        up.executor.auto = True
        await running.read()
        assert (await up.generate(request_id="mine")).request_id == "mine"
