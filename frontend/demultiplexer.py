"""Owns the way from an executor's StepFrames to flights: checks handle, epoch and token index of each delta."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from forebay.errors import ForebayError
from forebay.executor.v1 import executor_pb2 as wire
from frontend.flight import Flight

logger = logging.getLogger(__name__)


class ProtocolError(Exception):
    """What the executor sent cannot be read; its session is of no more use."""


@dataclass(slots=True)
class DeltaCounts:
    """What became of deltas."""

    taken: int = 0
    late: int = 0  # of a request or sequence that has ended, or of an earlier epoch
    broken: int = 0  # a gap, a contradiction or an impossible token


class Demultiplexer:
    """The flights aboard one session, by handle.

    `abort(handle, sequence_index | None)` tells the executor that a sequence, or the whole request, ended here;
    `broken(flight)` hands out a flight that the executor serves wrongly, after it was taken off.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        abort: Callable[[int, int | None], None],
        broken: Callable[[Flight], None],
        ended: Callable[[Flight], None],
    ) -> None:
        self.flights: dict[int, Flight] = {}
        self.counts = DeltaCounts()
        self._vocab_size = vocab_size or 1 << 32
        self._abort, self._broken, self._ended = abort, broken, ended

    def deliver(self, frame: wire.StepFrame) -> None:
        """Hands each delta of the frame to its flight; raises ProtocolError if the frame's lists do not fit."""
        flights, counts = self.flights, self.counts
        for hit in frame.prefix_hits:
            flight = flights.get(hit.handle)
            if flight is not None and flight.cached_prompt_tokens is None:
                flight.cached_prompt_tokens = hit.num_tokens
        for part in frame.prompt_logprobs:
            flight = flights.get(part.handle)
            if flight is None or flight.epoch != part.epoch:
                counts.late += 1
            elif not self._guarded(flight, flight.take_prompt_logprobs, part):
                self._drop(flight)

        for pooled in frame.pooled:
            flight = flights.get(pooled.handle)
            if flight is None or flight.epoch != pooled.epoch:
                counts.late += 1
            elif not self._guarded(flight, flight.take_pooled, pooled):
                self._drop(flight)
            else:
                counts.taken += 1
                if flight.done:
                    self._note_end(flight, 0, by_executor=True)

        handles, tokens = frame.handles, frame.token_ids[:]
        lengths = frame.num_tokens or [1] * len(handles)
        sizes = {len(handles), len(frame.epochs), len(frame.sequence_indexes), len(frame.token_indexes), len(lengths)}
        if len(sizes) != 1 or sum(lengths) != len(tokens):
            raise ProtocolError("a step frame's lists differ in length")
        finishes = {(f.handle, f.sequence_index): f for f in frame.finishes} if frame.finishes else {}
        logprobs = _by_token(frame.logprobs) if frame.logprobs else {}
        impossible = max(tokens, default=0) >= self._vocab_size

        end = 0
        for handle, epoch, sequence_index, token_index, length in zip(
            handles, frame.epochs, frame.sequence_indexes, frame.token_indexes, lengths, strict=True
        ):
            start, end = end, end + length
            finish = finishes.pop((handle, sequence_index), None) if finishes else None
            flight = flights.get(handle)
            if flight is None or flight.epoch != epoch:
                counts.late += 1
                continue
            delta = tokens[start:end]
            if impossible and max(delta, default=0) >= self._vocab_size:
                self._drop(flight)
                continue
            self._hand_over(flight, sequence_index, token_index, delta, logprobs, finish)
        for (handle, sequence_index), finish in finishes.items():  # sequences that ended without a token
            flight = flights.get(handle)
            if flight is None or flight.epoch != finish.epoch:
                counts.late += 1
            elif sequence_index < flight.num_sequences:
                known = len(flight.token_ids[sequence_index])
                self._hand_over(flight, sequence_index, known, [], logprobs, finish)

    def _hand_over(
        self,
        flight: Flight,
        sequence_index: int,
        token_index: int,
        delta: list[int],
        logprobs: dict[tuple[int, int, int], wire.TokenLogprobs],
        finish: wire.SequenceFinish | None,
    ) -> None:
        if finish is not None and finish.epoch != flight.epoch:
            finish = None
        if sequence_index >= flight.num_sequences:
            self._drop(flight)
            return
        if flight.ended[sequence_index]:
            self.counts.late += 1
            return
        details = None
        if flight.wants_logprobs:
            handle = flight.handle
            found = [logprobs.get((handle, sequence_index, token_index + i)) for i in range(len(delta))]
            if None in found:
                self._drop(flight)
                return
            details = found
        if not self._guarded(flight, flight.take, sequence_index, token_index, delta, details, finish):
            self._drop(flight)
            return
        self.counts.taken += 1
        if flight.ended[sequence_index]:
            self._note_end(flight, sequence_index, by_executor=finish is not None)
        flight.sink.flush()

    def _note_end(self, flight: Flight, sequence_index: int, *, by_executor: bool) -> None:
        if flight.done:
            self.flights.pop(flight.handle, None)
            self._ended(flight)
        if not by_executor:
            self._abort(flight.handle, None if flight.done else sequence_index)

    def _guarded(self, flight: Flight, take: Callable[..., bool], *what: object) -> bool:
        """Calls the flight; a defect behind it ends this request and no other."""
        try:
            return take(*what)
        except Exception:
            logger.exception("a request's output could not be taken")
            if self.flights.pop(flight.handle, None) is not None:
                self._abort(flight.handle, None)
                self._ended(flight)
                flight.sink.fail(ForebayError("an internal error; the server's log has the details"))
            return True

    def _drop(self, flight: Flight) -> None:
        """Takes off a flight that this executor serves wrongly."""
        self.counts.broken += 1
        if self.flights.pop(flight.handle, None) is not None:
            self._abort(flight.handle, None)
            self._broken(flight)


def _by_token(entries: list[wire.TokenLogprobs]) -> dict[tuple[int, int, int], wire.TokenLogprobs]:
    return {(entry.handle, entry.sequence_index, entry.token_index): entry for entry in entries}
