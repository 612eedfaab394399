"""Each delta goes to the flight that it belongs to; what is late, broken or ended by us is told apart."""

from __future__ import annotations

import logging

import pytest

from forebay.executor.v1 import executor_pb2 as wire
from frontend.demultiplexer import ProtocolError
from tests.frontend.doubles import RecordingSink
from tests.frontend.frames import LENGTH, STOP, VOCAB_SIZE, Bench, Part, frame_of


def test_each_delta_goes_to_its_sequence_and_wakes_its_reader() -> None:
    bench = Bench()
    one, two = bench.board(1), bench.board(2, n=2)
    bench.deliver(Part(2, 0, [30, 31], sequence_index=1), Part(1, 0, [10]), Part(2, 0, [20]))
    assert (one.token_ids, two.token_ids) == ([[10]], [[20], [30, 31]])
    assert (one.sink.num_flushes, two.sink.num_flushes) == (1, 2)
    assert bench.counts == (3, 0, 0)


def test_frame_without_lengths_has_one_token_each() -> None:
    bench = Bench()
    flight = bench.board(n=2)
    frame = frame_of(Part(1, 0, [7]), Part(1, 0, [8], sequence_index=1))
    del frame.num_tokens[:]
    bench.demultiplexer.deliver(frame)
    assert flight.token_ids == [[7], [8]]


def test_flight_leaves_when_its_last_sequence_ends() -> None:
    bench = Bench()
    flight = bench.board(n=2)
    bench.deliver(Part(1, 0, [5], finish=LENGTH))
    assert bench.demultiplexer.flights == {1: flight} and not bench.ended
    bench.deliver(Part(1, 0, [6], sequence_index=1, finish=STOP))
    assert bench.demultiplexer.flights == {} and bench.ended == [flight]
    assert bench.aborts == [], "the executor knows"


def test_sequence_that_the_sink_ends_is_aborted_at_the_executor_and_the_last_one_with_its_request() -> None:
    bench = Bench()
    flight = bench.board(sink=RecordingSink(3, stops_at={0: 1, 1: 1}), n=3)
    bench.deliver(Part(1, 0, [5], sequence_index=1))
    assert bench.aborts == [(1, 1)]
    bench.deliver(Part(1, 0, [5], sequence_index=2, finish=LENGTH), Part(1, 0, [6]))
    assert bench.aborts == [(1, 1), (1, None)] and bench.ended == [flight]


def test_sequence_that_ends_without_a_token_ends() -> None:
    bench = Bench()
    flight = bench.board()
    bench.deliver(Part(1, 0, [5]))
    frame = wire.StepFrame()
    frame.finishes.add(handle=1, epoch=1, sequence_index=0, reason=LENGTH)
    bench.demultiplexer.deliver(frame)
    assert flight.sink.num_ends == [1] and bench.ended == [flight]


def test_tokens_of_unknown_requests_ended_sequences_and_earlier_epochs_are_late() -> None:
    bench = Bench()
    flight = bench.board(1, n=2)
    bench.deliver(Part(1, 0, [5], finish=LENGTH))
    bench.deliver(Part(9, 0, [1]), Part(1, 1, [6]), Part(1, 0, [7], sequence_index=1, epoch=0))
    assert bench.counts == (1, 3, 0)
    assert flight.token_ids == [[5], []] and not bench.broken


@pytest.mark.parametrize(
    "part",
    [Part(1, 3, [9]), Part(1, 1, [9]), Part(1, 2, [VOCAB_SIZE]), Part(1, 2, [9], sequence_index=1)],
    ids=["gap", "contradiction", "out-of-vocabulary", "no-such-sequence"],
)
def test_flight_that_is_served_wrongly_is_taken_off_and_handed_out(part: Part) -> None:
    bench = Bench()
    flight, other = bench.board(1), bench.board(2)
    bench.deliver(Part(1, 0, [5, 6]))
    bench.deliver(part, Part(2, 0, [7]))
    assert bench.broken == [flight] and bench.aborts == [(1, None)] and bench.counts[2] == 1
    assert flight.sink.token_ids == [[5, 6]] and other.token_ids == [[7]]
    assert bench.demultiplexer.flights == {2: other}


def test_vocabulary_of_unknown_size_takes_any_id() -> None:
    bench = Bench(vocab_size=0)
    flight = bench.board()
    bench.deliver(Part(1, 0, [2**32 - 1]))
    assert flight.token_ids == [[2**32 - 1]]


@pytest.mark.parametrize("name", ["handles", "epochs", "sequence_indexes", "token_indexes", "num_tokens", "token_ids"])
def test_frame_whose_lists_differ_in_length_ends_the_session_before_a_token_is_taken(name: str) -> None:
    bench = Bench()
    flight = bench.board()
    frame = frame_of(Part(1, 0, [5, 6]))
    getattr(frame, name).append(1)
    with pytest.raises(ProtocolError, match="lists differ in length"):
        bench.demultiplexer.deliver(frame)
    assert flight.token_ids == [[]]


def test_logprobs_travel_with_their_tokens_however_deltas_overlap() -> None:
    bench = Bench()
    flight = bench.board(logprobs=0)
    bench.deliver(Part(1, 0, [5, 6], with_logprobs=True))
    bench.deliver(Part(1, 1, [6, 7, 8], with_logprobs=True))
    assert [entry.logprob for entry in flight.sink.logprobs[0]] == [0.0, -1.0, -2.0, -3.0]


def test_token_without_the_logprobs_that_were_asked_for_is_not_taken() -> None:
    bench = Bench()
    flight = bench.board(logprobs=0)
    bench.deliver(Part(1, 0, [5]))
    assert bench.broken == [flight] and flight.token_ids == [[]]


def test_prefix_hit_counts_where_the_request_first_ran() -> None:
    bench = Bench()
    flight = bench.board(1)
    for num_tokens in (16, 32):
        frame = wire.StepFrame()
        frame.prefix_hits.add(handle=1, num_tokens=num_tokens)
        frame.prefix_hits.add(handle=9, num_tokens=1)
        bench.demultiplexer.deliver(frame)
    assert flight.cached_prompt_tokens == 16


def test_prompt_logprobs_go_to_their_epoch_and_come_before_the_tokens_of_their_frame() -> None:
    bench = Bench()
    flight = bench.board(1, prompt_logprobs=0)
    frame = frame_of(Part(1, 0, [5]))
    frame.prompt_logprobs.add(handle=1, epoch=9, first_position=1, logprobs=[-9.0], ranks=[1])
    frame.prompt_logprobs.add(handle=7, epoch=1, first_position=1, logprobs=[-9.0], ranks=[1])
    frame.prompt_logprobs.add(handle=1, epoch=1, first_position=1, logprobs=[-1.0, -2.0, -3.0], ranks=[1, 1, 1])
    bench.demultiplexer.deliver(frame)
    assert [list(part.logprobs) for part in flight.sink.prompt_logprobs[0]] == [[-1.0, -2.0, -3.0]]
    assert flight.token_ids == [[5]] and bench.counts == (1, 2, 0)


def test_prompt_logprobs_with_a_gap_take_the_flight_off() -> None:
    bench = Bench()
    flight = bench.board(1, prompt_logprobs=0)
    frame = wire.StepFrame()
    frame.prompt_logprobs.add(handle=1, epoch=1, first_position=2, logprobs=[-1.0], ranks=[1])
    bench.demultiplexer.deliver(frame)
    assert bench.broken == [flight] and bench.counts == (0, 0, 1)


def test_defect_behind_one_flight_ends_that_request_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bad, good = bench.board(1), bench.board(2)

    def push(*what: object) -> bool:
        raise ZeroDivisionError

    bad.sink.push = push
    with caplog.at_level(logging.ERROR):
        bench.deliver(Part(1, 0, [5]), Part(2, 0, [6]))
    assert [error.code for error in bad.sink.errors] == ["INTERNAL"] and bench.aborts == [(1, None)]
    assert good.token_ids == [[6]] and bench.demultiplexer.flights == {2: good}
    assert bench.ended == [bad] and "ZeroDivisionError" in caplog.text


def test_end_of_an_earlier_epoch_is_late_and_no_fault() -> None:
    bench = Bench()
    flight = bench.board(1, prompt_logprobs=0)
    bench.resubmit(flight, 1)
    frame = wire.StepFrame()
    frame.finishes.add(handle=1, epoch=1, sequence_index=0, reason=LENGTH)
    bench.demultiplexer.deliver(frame)
    assert bench.counts == (0, 1, 0) and flight.sink.num_ends == [0] and not bench.broken
