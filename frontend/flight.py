"""Owns one request's way through executors: which tokens it has, its epoch, and what to submit when it moves on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from forebay.errors import ForebayError
from forebay.executor.v1 import executor_pb2 as wire
from forebay.run_lengths import shorten
from preprocess.ready_prompt import Positions, ReadyMedia, position_fields


class TokenSink(Protocol):
    """Where a flight's tokens go. Calls return at once: nobody behind a sink can hold up an executor's session."""

    def push(
        self,
        sequence_index: int,
        token_ids: list[int],
        logprobs: list[wire.TokenLogprobs] | None,
        finish: wire.SequenceFinish | None,
    ) -> bool:
        """Takes a sequence's next tokens, and its end with the last of them; True ends it here (a stop string)."""

    def flush(self) -> None:
        """Says that all there is for now was pushed."""

    def prompt_logprobs_done(self, parts: list[wire.PromptLogprobs]) -> None:
        """Takes the prompt's log-probabilities, complete, before the first token."""

    def fail(self, error: ForebayError) -> None:
        """Takes the error that ended the flight."""


class PooledSink(Protocol):
    """Where a pooling flight's result goes; calls return at once."""

    def pooled(self, values: bytes, num_rows: int, num_columns: int) -> None:
        """Takes the whole result: rows of little-endian IEEE 754 single precision."""

    def fail(self, error: ForebayError) -> None:
        """Takes the error that ended the flight."""


class Flight:
    """A request between the frontend and whichever executor runs it now.

    Either it generates, as `sampling` says, and its sink is a TokenSink; or it pools, as `pooling` says, into a PooledSink.
    `epoch` counts its submissions; only tokens of the current one are taken. `losses` counts the executors that died
    with it aboard. `owner` is the executor client that has it now, and `handle` its number there.
    """

    __slots__ = (
        "_prompt_end",
        "_prompt_next",
        "_prompt_parts",
        "_rows",
        "cache_salt",
        "cached_prompt_tokens",
        "deadline",
        "encoder_token_ids",
        "ended",
        "epoch",
        "handle",
        "hashes",
        "losses",
        "media",
        "num_open",
        "num_sequences",
        "owner",
        "pooling",
        "positions",
        "priority",
        "prompt_token_ids",
        "refused_by",
        "released",
        "sampling",
        "sink",
        "token_ids",
        "wait_until",
        "wants_logprobs",
    )  # fmt: skip

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        sampling: wire.SamplingParams | None,
        sink: TokenSink | PooledSink,
        *,
        pooling: wire.PoolingParams | None = None,
        priority: int = 0,
        deadline: float | None = None,
        cache_salt: bytes = b"",
        encoder_token_ids: Sequence[int] = (),
        media: Sequence[ReadyMedia] = (),
        positions: Positions = (),
    ) -> None:
        """`encoder_token_ids` is what the encoder of an encoder-decoder reads; the prompt is the decoder's then.

        `positions` are the prompt's rotary positions, axis by axis, where they are not the tokens' indexes.
        """
        assert (sampling is None) != (pooling is None), "a request generates or pools"
        self.pooling = pooling
        sampling = sampling or wire.SamplingParams()
        self.encoder_token_ids = encoder_token_ids
        self.media, self.positions = tuple(media), positions
        self.prompt_token_ids = prompt_token_ids
        self.sampling = sampling
        self.sink = sink
        self.priority = priority
        self.deadline = deadline  # of time.monotonic()
        self.cache_salt = cache_salt
        self.num_sequences = self.num_open = max(1, sampling.n)
        self.token_ids: list[list[int]] = [[] for _ in range(self.num_sequences)]
        self.ended = [False] * self.num_sequences
        self.wants_logprobs = sampling.HasField("logprobs")
        self.epoch, self.handle, self.losses = 0, 0, 0
        self.owner: object | None = None
        self.cached_prompt_tokens: int | None = None  # of the first epoch that told
        self.released = False
        self.wait_until: float | None = None  # set while no executor can take it
        self.refused_by: set[object] = set()  # executors that had no room for it in this round
        self.hashes: dict[int, list[int]] = {}  # block size -> short hashes of the prompt's blocks
        self._prompt_parts: list[wire.PromptLogprobs] = []
        self._prompt_next = 1  # position of the next prompt log-probability; the first token has none
        self._prompt_end = len(prompt_token_ids) if sampling.HasField("prompt_logprobs") else 1
        self._rows: list[wire.PoolingOutput] = []

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt, those that an encoder reads counted in."""
        return len(self.prompt_token_ids) + len(self.encoder_token_ids)

    @property
    def started(self) -> bool:
        """Whether any token was taken."""
        return any(self.token_ids)

    @property
    def done(self) -> bool:
        """Whether all sequences have ended."""
        return self.num_open == 0

    @property
    def awaits_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of the prompt were asked for and are not complete."""
        return self._prompt_next < self._prompt_end

    def submission(self, handle: int) -> wire.Submit:
        """Begins the next epoch: the message that lets an executor go on from what is known."""
        self.epoch += 1
        self.handle = handle
        token_ids, counts = (self.prompt_token_ids, ()) if not self.media else shorten(self.prompt_token_ids)
        submit = wire.Submit(
            handle=handle,
            epoch=self.epoch,
            prompt_token_ids=token_ids,
            prompt_token_counts=counts,
            sampling=self.sampling if self.pooling is None else None,
            pooling=self.pooling,
            priority=self.priority,
            cache_salt=self.cache_salt,
            encoder_token_ids=self.encoder_token_ids,
            media=[found.message() for found in self.media],
            **position_fields(self.positions),
        )
        self._rows = []  # another executor pools from the beginning
        if self.deadline is not None:
            submit.timeout_ms = max(1, int((self.deadline - time.monotonic()) * 1000))
        for index, token_ids in enumerate(self.token_ids):
            if token_ids or self.ended[index]:
                submit.resumed.add(sequence_index=index, token_ids=token_ids, finished=self.ended[index])
        if self.awaits_prompt_logprobs:
            self._prompt_parts, self._prompt_next = [], 1
        elif self.pooling is None:
            submit.sampling.ClearField("prompt_logprobs")  # known already, and they would forbid prefix hits
        return submit

    def take(
        self,
        sequence_index: int,
        token_index: int,
        token_ids: list[int],
        logprobs: list[wire.TokenLogprobs] | None,
        finish: wire.SequenceFinish | None,
    ) -> bool:
        """Takes what an executor says follows; returns False if it does not follow from what is known.

        Tokens that are known already are skipped; tokens that contradict them, leave a gap, or come before the prompt's
        log-probabilities are complete, are not taken, nor is an end before the last known token.
        """
        if self.awaits_prompt_logprobs or self.pooling is not None:
            return False
        known = self.token_ids[sequence_index]
        skip = len(known) - token_index
        if skip:
            if skip < 0 or known[token_index : token_index + len(token_ids)] != token_ids[:skip]:
                return False
            if finish is not None and len(token_ids) < skip:
                return False
            token_ids = token_ids[skip:]
            logprobs = logprobs[skip:] if logprobs else logprobs
        if token_ids or finish is not None:
            known += token_ids
            if self.sink.push(sequence_index, token_ids, logprobs, finish) or finish is not None:
                self.ended[sequence_index] = True
                self.num_open -= 1
        return True

    def take_prompt_logprobs(self, part: wire.PromptLogprobs) -> bool:
        """Takes the next part of the prompt's log-probabilities; returns False if it leaves a gap or does not fit."""
        if not self.awaits_prompt_logprobs or part.first_position < self._prompt_next:
            return True
        num = len(part.logprobs)
        fits = len(part.ranks) == num and len(part.top_ids) == len(part.top_logprobs) == num * part.num_top
        if part.first_position > self._prompt_next or self._prompt_next + num > self._prompt_end or not fits:
            return False
        self._prompt_parts.append(part)
        self._prompt_next += num
        if not self.awaits_prompt_logprobs:
            self.sink.prompt_logprobs_done(self._prompt_parts)
            self._prompt_parts = []
        return True

    def take_pooled(self, part: wire.PoolingOutput) -> bool:
        """Takes the next rows of a pooling result; returns False if they do not follow, or are not of one shape."""
        rows = self._rows
        num_known = sum(known.num_rows for known in rows)
        fits = len(part.values) == 4 * part.num_rows * part.num_columns
        same = not rows or rows[0].num_columns == part.num_columns
        if self.pooling is None or self.done or part.first_row != num_known or not (fits and same):
            return False
        rows.append(part)
        if part.finished:
            values = b"".join(known.values for known in rows)
            self.sink.pooled(values, num_known + part.num_rows, part.num_columns)
            self.ended[0], self.num_open, self._rows = True, 0, []
        return True
