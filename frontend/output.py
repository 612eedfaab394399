"""Owns what a request has produced and its client has not got yet: one delta per sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from forebay.errors import ForebayError, ResourceExhausted
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1 import generation_pb2 as api
from forebay.v1.errors_pb2 import ErrorReason

_REASONS = {
    wire.SEQUENCE_FINISH_REASON_STOP: api.FINISH_REASON_STOP,
    wire.SEQUENCE_FINISH_REASON_LENGTH: api.FINISH_REASON_LENGTH,
}
_BYTES_PER_LOGPROB, _BYTES_PER_TOP = 16, 10  # about what they take in a message


class Text(Protocol):
    """The text of one sequence as it grows; see frontend.detokenizer.SequenceText."""

    def push(self, token_ids: Sequence[int], *, finished_by_stop_token: bool = False) -> object: ...

    def finish(self) -> str: ...


class _Pending:
    """What is new of one sequence."""

    __slots__ = ("finish_reason", "logprobs", "stop_string", "stop_token_id", "texts", "token_ids")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[api.TokenLogprobs] = []
        self.finish_reason = api.FINISH_REASON_UNSPECIFIED
        self.stop_string: str | None = None
        self.stop_token_id: int | None = None


class Output:
    """The sink of a flight. However slowly its client reads, there is one pending delta per sequence.

    `writer` is the task that is inside a write to the client, if one is: only then can unsent output pile up, and
    beyond `max_unsent_bytes` the write is broken off. Without `max_unsent_bytes`, `ready` waits for the end of everything.
    """

    def __init__(self, texts: Sequence[Text], prompt_token_ids: Sequence[int], *, max_unsent_bytes: int | None) -> None:
        self.num_tokens = 0
        self.num_open = len(texts)
        self.error: ForebayError | None = None
        self.interrupted = False
        self.prompt_logprobs: list[api.TokenLogprobs] = []
        self.awaits_prompt_logprobs = False
        self.writer: asyncio.Task[object] | None = None
        self._texts, self._prompt_token_ids = texts, prompt_token_ids
        self._max_unsent_bytes = max_unsent_bytes
        self._pending: dict[int, _Pending] = {}
        self._unsent_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def done(self) -> bool:
        """Whether all sequences have ended."""
        return self.num_open == 0

    async def ready(self) -> None:
        """Returns when there is something to take, or all is over."""
        while not self._is_ready():
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _is_ready(self) -> bool:
        if self.error is not None:
            return True
        if self.awaits_prompt_logprobs:
            return False
        return self.num_open == 0 or (self._max_unsent_bytes is not None and bool(self._pending))

    def take(self) -> list[api.SequenceDelta]:
        """What is new since the last call, by sequence."""
        pending, self._pending, self._unsent_bytes = self._pending, {}, 0
        return [
            api.SequenceDelta(
                index=index,
                text="".join(new.texts),
                token_ids=new.token_ids,
                logprobs=new.logprobs,
                finish_reason=new.finish_reason,
                stop_string=new.stop_string,
                stop_token_id=new.stop_token_id,
            )
            for index, new in (pending.items() if len(pending) < 2 else sorted(pending.items()))
        ]

    def interrupt(self, error: ForebayError) -> None:
        """Ends the call with an error now, even if its client does not read."""
        self._pending.clear()
        self.fail(error)
        if self.writer is not None and not self.interrupted:
            self.interrupted = True
            self.writer.cancel()

    # TokenSink

    def push(
        self,
        sequence_index: int,
        token_ids: list[int],
        logprobs: list[wire.TokenLogprobs] | None,
        finish: wire.SequenceFinish | None,
    ) -> bool:
        """Turns tokens into text; True if a stop string ends the sequence here."""
        new = self._pending.get(sequence_index)
        if new is None:
            new = self._pending[sequence_index] = _Pending()
        sequence = self._texts[sequence_index]
        by_stop_token = finish is not None and finish.HasField("stop_token_id")
        delta = sequence.push(token_ids, finished_by_stop_token=by_stop_token)
        kept = token_ids if delta.num_tokens == len(token_ids) else token_ids[: delta.num_tokens]
        if delta.text:
            new.texts.append(delta.text)
        new.token_ids += kept
        self.num_tokens += len(kept)
        self._unsent_bytes += len(delta.text) + 4 * len(kept)
        if logprobs:
            self._add_logprobs(new, kept, logprobs)
        ended_here = delta.stop_string is not None
        if ended_here:
            new.finish_reason, new.stop_string = api.FINISH_REASON_STOP, delta.stop_string
            self.num_open -= 1
        elif finish is not None:
            new.texts.append(sequence.finish())
            new.finish_reason = _REASONS.get(finish.reason, api.FINISH_REASON_STOP)
            new.stop_token_id = finish.stop_token_id if by_stop_token else None
            self.num_open -= 1
        if self._unsent_bytes > (self._max_unsent_bytes or self._unsent_bytes) and self.writer is not None:
            self.interrupt(
                ResourceExhausted(
                    f"the client has not read more than {self._max_unsent_bytes} bytes of its stream",
                    ErrorReason.ERROR_REASON_SLOW_READER,
                )
            )
        return ended_here

    def _add_logprobs(self, new: _Pending, token_ids: list[int], logprobs: list[wire.TokenLogprobs]) -> None:
        for token_id, entry in zip(token_ids, logprobs, strict=False):  # fewer ids where a stop string cut
            new.logprobs.append(
                api.TokenLogprobs(
                    token_id=token_id,
                    logprob=entry.logprob,
                    rank=entry.rank,
                    top_ids=entry.top_ids,
                    top_logprobs=entry.top_logprobs,
                )
            )
            self._unsent_bytes += _BYTES_PER_LOGPROB + _BYTES_PER_TOP * len(entry.top_ids)

    def flush(self) -> None:
        """Wakes who waits in `ready`, if there is reason to."""
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._is_ready():
            waiter.set_result(None)

    def prompt_logprobs_done(self, parts: list[wire.PromptLogprobs]) -> None:
        """Turns the prompt's log-probabilities into their public form."""
        for part in parts:
            num_top = part.num_top
            for offset, (logprob, rank) in enumerate(zip(part.logprobs, part.ranks, strict=True)):
                top = slice(offset * num_top, (offset + 1) * num_top)
                self.prompt_logprobs.append(
                    api.TokenLogprobs(
                        token_id=self._prompt_token_ids[part.first_position + offset],
                        logprob=logprob,
                        rank=rank,
                        top_ids=part.top_ids[top],
                        top_logprobs=part.top_logprobs[top],
                    )
                )
        self.awaits_prompt_logprobs = False
        self.flush()

    def fail(self, error: ForebayError) -> None:
        """Ends the output with an error, after what is pending."""
        if self.error is None:
            self.error = error
            self.flush()
