"""Owns step frames written by hand, and a demultiplexer whose every word is remembered."""

from __future__ import annotations

from dataclasses import dataclass, field

from forebay.executor.v1 import executor_pb2 as wire
from frontend.demultiplexer import Demultiplexer
from frontend.flight import Flight
from tests.frontend.doubles import RecordingSink

VOCAB_SIZE = 1000
LENGTH, STOP = wire.SEQUENCE_FINISH_REASON_LENGTH, wire.SEQUENCE_FINISH_REASON_STOP


@dataclass
class Part:
    """One delta of a frame, and its sequence's end if it has one."""

    handle: int
    token_index: int
    token_ids: list[int]
    epoch: int = 1
    sequence_index: int = 0
    finish: int = wire.SEQUENCE_FINISH_REASON_UNSPECIFIED
    with_logprobs: bool = False


def frame_of(*parts: Part) -> wire.StepFrame:
    frame = wire.StepFrame()
    for part in parts:
        frame.handles.append(part.handle)
        frame.epochs.append(part.epoch)
        frame.sequence_indexes.append(part.sequence_index)
        frame.token_indexes.append(part.token_index)
        frame.num_tokens.append(len(part.token_ids))
        frame.token_ids.extend(part.token_ids)
        place = {"handle": part.handle, "sequence_index": part.sequence_index}
        if part.finish:
            frame.finishes.add(epoch=part.epoch, reason=part.finish, **place)
        for offset in range(len(part.token_ids) if part.with_logprobs else 0):
            index = part.token_index + offset
            frame.logprobs.add(token_index=index, logprob=-float(index), rank=1, **place)
    return frame


@dataclass
class Bench:
    """A session's demultiplexer and what it told."""

    vocab_size: int = VOCAB_SIZE
    aborts: list[tuple[int, int | None]] = field(default_factory=list)
    broken: list[Flight] = field(default_factory=list)
    ended: list[Flight] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.demultiplexer = Demultiplexer(
            self.vocab_size,
            abort=lambda handle, sequence_index: self.aborts.append((handle, sequence_index)),
            broken=self.broken.append,
            ended=self.ended.append,
        )

    def board(self, handle: int = 1, sink: RecordingSink | None = None, **sampling: object) -> Flight:
        params = wire.SamplingParams(**{"max_tokens": 10, **sampling})
        flight = Flight([1, 2, 3, 4], params, sink or RecordingSink(max(1, params.n)))
        self.resubmit(flight, handle)
        return flight

    def resubmit(self, flight: Flight, handle: int) -> None:
        flight.submission(handle)
        self.demultiplexer.flights[handle] = flight

    def deliver(self, *parts: Part) -> None:
        self.demultiplexer.deliver(frame_of(*parts))

    @property
    def counts(self) -> tuple[int, int, int]:
        counts = self.demultiplexer.counts
        return counts.taken, counts.late, counts.broken
