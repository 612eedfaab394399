"""A flight takes only what follows from what it has, and can be submitted again from there at any time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.executor.v1 import executor_pb2 as wire
from frontend.flight import Flight
from tests.frontend.doubles import RecordingSink

TOKENS = [50, 51, 52, 53, 54, 55]
FINISH = wire.SequenceFinish(reason=wire.SEQUENCE_FINISH_REASON_LENGTH)


def flight_of(prompt: tuple[int, ...] = (1, 2, 3), sink: RecordingSink | None = None, **sampling: object) -> Flight:
    params = wire.SamplingParams(**{"max_tokens": 10, **sampling})
    return Flight(prompt, params, sink or RecordingSink(max(1, params.n)))


def part_at(first: int, num: int, *, num_top: int = 0) -> wire.PromptLogprobs:
    return wire.PromptLogprobs(
        first_position=first,
        logprobs=[-float(first + i) for i in range(num)],
        ranks=[1] * num,
        num_top=num_top,
        top_ids=[7] * (num * num_top),
        top_logprobs=[-1.0] * (num * num_top),
    )


def test_first_submission_has_the_whole_request_and_nothing_to_resume() -> None:
    flight = Flight([1, 2, 3], wire.SamplingParams(max_tokens=4, seed=9), RecordingSink(), priority=-5, cache_salt=b"s")
    submit = flight.submission(17)
    assert (submit.handle, submit.epoch, submit.priority, submit.cache_salt) == (17, 1, -5, b"s")
    assert list(submit.prompt_token_ids) == [1, 2, 3] and submit.sampling == flight.sampling
    assert not submit.resumed and not submit.HasField("timeout_ms")
    assert (flight.handle, flight.epoch, flight.started, flight.done) == (17, 1, False, False)


def test_each_submission_is_an_epoch_and_resumes_what_was_taken() -> None:
    flight = flight_of(n=3)
    flight.submission(1)
    flight.take(0, 0, TOKENS[:2], None, None)
    flight.take(2, 0, TOKENS[:3], None, FINISH)
    submit = flight.submission(8)
    assert (submit.handle, submit.epoch) == (8, 2)
    resumed = [(r.sequence_index, list(r.token_ids), r.finished) for r in submit.resumed]
    assert resumed == [(0, TOKENS[:2], False), (2, TOKENS[:3], True)]


def test_sequence_that_ended_without_a_token_is_resumed_as_ended() -> None:
    flight = flight_of(n=2)
    flight.take(1, 0, [], None, FINISH)
    assert [(r.sequence_index, r.finished) for r in flight.submission(2).resumed] == [(1, True)]


def test_deadline_travels_as_the_time_that_is_left() -> None:
    now = time.monotonic()
    flight = flight_of()
    flight.deadline = now + 60
    first = flight.submission(1).timeout_ms
    assert 0 < first <= 60_000
    flight.deadline = now - 1  # passed already: the executor ends it at once, as 0 would say "none"
    assert flight.submission(2).timeout_ms == 1


def test_end_comes_with_the_last_token_or_from_the_sink() -> None:
    sink = RecordingSink(2, stops_at={1: 2})
    flight = flight_of(sink=sink, n=2)
    assert flight.take(0, 0, TOKENS[:1], None, FINISH) and flight.ended == [True, False] and not flight.done
    assert flight.take(1, 0, TOKENS[:2], None, None) and flight.done
    assert sink.num_ends == [1, 1]


def test_end_that_both_sides_see_is_one_end() -> None:
    sink = RecordingSink(stops_at={0: 2})
    flight = flight_of(sink=sink)
    flight.take(0, 0, TOKENS[:2], None, FINISH)
    assert flight.done and flight.num_open == 0 and sink.num_ends == [1]


@given(
    deltas=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 4), st.sets(st.integers(0, 8), max_size=1), st.booleans()),
        max_size=20,
    )
)
def test_whatever_comes_the_tokens_are_those_that_follow(deltas: list[tuple[int, int, set[int], bool]]) -> None:
    sink = RecordingSink()
    flight = flight_of(sink=sink)
    flight.submission(1)
    for first, num, wrong_at, with_logprobs in deltas:
        known = len(flight.token_ids[0])
        # Tokens that nobody can know to be wrong are not drawn: only what is known already is contradicted.
        token_ids = [1000 + i if i not in wrong_at or i >= known else 1 for i in range(first, first + num)]
        logprobs = [wire.TokenLogprobs(token_index=i) for i in range(first, first + num)] if with_logprobs else None
        follows = first <= known and not any(first <= i < min(known, first + num) for i in wrong_at)
        assert flight.take(0, first, token_ids, logprobs, None) == follows
        if follows and with_logprobs and first + num > known:
            assert [entry.token_index for entry in sink.logprobs[0][known - first - num :]] == [
                *range(known, first + num)
            ]
    assert flight.token_ids == sink.token_ids == [[1000 + i for i in range(len(sink.token_ids[0]))]]


def test_repeated_tokens_tell_the_sink_nothing() -> None:
    sink = RecordingSink()
    flight = flight_of(sink=sink)
    flight.take(0, 0, TOKENS[:3], None, None)
    sink.push = None  # would raise
    assert flight.take(0, 1, TOKENS[1:3], None, None)


def test_prompt_logprobs_are_told_when_complete_and_then_asked_for_no_more() -> None:
    flight = flight_of((1, 2, 3, 4, 5), prompt_logprobs=0)
    assert flight.submission(1).sampling.HasField("prompt_logprobs")
    assert flight.take_prompt_logprobs(part_at(1, 2))
    assert flight.sink.prompt_logprobs == []
    assert flight.take_prompt_logprobs(part_at(3, 2))
    assert [[p.first_position for p in parts] for parts in flight.sink.prompt_logprobs] == [[1, 3]]
    again = flight.submission(2)
    assert not again.sampling.HasField("prompt_logprobs")
    assert flight.sampling.HasField("prompt_logprobs"), "the request itself must not change"


def test_half_known_prompt_logprobs_are_asked_for_from_the_beginning() -> None:
    flight = flight_of((1, 2, 3, 4, 5), prompt_logprobs=0)
    flight.submission(1)
    flight.take_prompt_logprobs(part_at(1, 2))
    assert flight.submission(2).sampling.HasField("prompt_logprobs")
    for first in (1, 2, 3, 4):
        assert flight.take_prompt_logprobs(part_at(first, 1))
    assert [[p.first_position for p in parts] for parts in flight.sink.prompt_logprobs] == [[1, 2, 3, 4]]


def test_prompt_of_one_token_has_no_logprobs_to_ask_for() -> None:
    assert not flight_of((1,), prompt_logprobs=3).submission(1).sampling.HasField("prompt_logprobs")


@pytest.mark.parametrize(
    "part",
    [
        part_at(2, 1),
        wire.PromptLogprobs(first_position=1, logprobs=[-1.0], ranks=[]),
        wire.PromptLogprobs(first_position=1, logprobs=[-1.0], ranks=[1], num_top=2, top_ids=[5], top_logprobs=[-1.0]),
        wire.PromptLogprobs(first_position=1, logprobs=[-1.0], ranks=[1], num_top=1, top_ids=[5], top_logprobs=[]),
    ],
    ids=["gap", "ranks", "top", "top-logprobs"],
)
def test_prompt_logprobs_that_leave_a_gap_or_do_not_fit_are_not_taken(part: wire.PromptLogprobs) -> None:
    flight = flight_of((1, 2, 3, 4, 5), prompt_logprobs=0)
    assert not flight.take_prompt_logprobs(part)
    assert flight.sink.prompt_logprobs == []


def test_prompt_logprobs_that_are_known_are_passed_over() -> None:
    flight = flight_of((1, 2, 3, 4), prompt_logprobs=0)
    assert flight.take_prompt_logprobs(part_at(1, 2)) and flight.take_prompt_logprobs(part_at(1, 2))
    assert flight.take_prompt_logprobs(part_at(3, 1))
    assert [len(parts) for parts in flight.sink.prompt_logprobs] == [2]


def test_prompt_logprobs_beyond_the_prompt_are_not_taken() -> None:
    flight = flight_of((1, 2, 3), prompt_logprobs=0)
    assert not flight.take_prompt_logprobs(part_at(1, 3))
    assert flight.sink.prompt_logprobs == []


def test_token_that_overtakes_the_prompt_logprobs_is_not_taken() -> None:
    flight = flight_of((1, 2, 3), prompt_logprobs=0)
    flight.submission(1)
    flight.take_prompt_logprobs(part_at(1, 1))
    assert not flight.take(0, 0, TOKENS[:1], None, FINISH), "the output would wait for them for ever"
    assert flight.take_prompt_logprobs(part_at(2, 1)) and flight.take(0, 0, TOKENS[:1], None, FINISH)


def test_end_before_the_last_token_that_was_taken_contradicts_it() -> None:
    flight = flight_of()
    flight.take(0, 0, TOKENS[:3], None, None)
    assert not flight.take(0, 0, TOKENS[:2], None, FINISH) and not flight.done
    assert flight.take(0, 0, TOKENS[:3], None, FINISH) and flight.done
