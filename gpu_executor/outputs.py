"""Owns the frames that go to a session: one per engine step, merged into one while the frontend is slow to read."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

from forebay.executor.v1 import executor_pb2
from gpu_executor.engine import PooledOutput, PromptLogprobsOutput, StepOutput, TokenOutput
from gpu_executor.request import FinishReason, Request
from gpu_executor.sampler import TokenLogprobs

_MOST_POOLED_BYTES = 1 << 20  # in one frame

_FINISH_REASONS = {
    FinishReason.STOP: executor_pb2.SEQUENCE_FINISH_REASON_STOP,
    FinishReason.LENGTH: executor_pb2.SEQUENCE_FINISH_REASON_LENGTH,
}


class FrameBuilder:
    """Collects what one or more steps gave a session. Parallel lists, because building sub-messages is what costs."""

    def __init__(self) -> None:
        self.frame = executor_pb2.StepFrame()
        self.num_pooled_bytes = 0
        # By sequence, in order of first appearance: (handle, epoch, sequence index) -> [first token index, ids]
        self._deltas: dict[tuple[int, int, int], tuple[int, list[int]]] = {}

    def add_token(self, handle: int, token: TokenOutput) -> None:
        sequence = token.sequence
        epoch = sequence.request.epoch
        key = (handle, epoch, sequence.index)
        delta = self._deltas.get(key)
        if delta is None:
            self._deltas[key] = (token.token_index, [token.token_id])
        else:
            delta[1].append(token.token_id)
        if token.logprobs is not None:
            self._add_logprobs(handle, sequence.index, token.token_index, token.logprobs)
        if token.finish_reason is not None:
            stop = token.finish_reason is FinishReason.STOP
            self.frame.finishes.add(
                handle=handle,
                epoch=epoch,
                sequence_index=sequence.index,
                reason=_FINISH_REASONS[token.finish_reason],
                stop_token_id=token.token_id if stop else None,
            )

    def _add_logprobs(self, handle: int, sequence_index: int, token_index: int, entry: TokenLogprobs) -> None:
        self.frame.logprobs.add(
            handle=handle,
            sequence_index=sequence_index,
            token_index=token_index,
            logprob=entry.logprob,
            rank=entry.rank,
            top_ids=entry.top_ids,
            top_logprobs=entry.top_logprobs,
        )

    def add_prompt_logprobs(self, handle: int, output: PromptLogprobsOutput) -> None:
        entries = output.entries
        self.frame.prompt_logprobs.add(
            handle=handle,
            epoch=output.request.epoch,
            first_position=output.first_position,
            logprobs=[entry.logprob for entry in entries],
            ranks=[entry.rank for entry in entries],
            top_ids=[token_id for entry in entries for token_id in entry.top_ids],
            top_logprobs=[logprob for entry in entries for logprob in entry.top_logprobs],
            num_top=len(entries[0].top_ids),
        )

    def add_pooled(self, handle: int, output: PooledOutput) -> None:
        num_rows, num_columns = output.rows.shape
        self.frame.pooled.add(
            handle=handle,
            epoch=output.request.epoch,
            first_row=output.first_row,
            num_rows=num_rows,
            num_columns=num_columns,
            values=output.rows.astype("<f4").tobytes(),
            finished=output.finished,
        )
        self.num_pooled_bytes += output.rows.nbytes

    def add_prefix_hit(self, handle: int, request: Request) -> None:
        if request.num_cached_tokens:
            self.frame.prefix_hits.add(handle=handle, num_tokens=request.num_cached_tokens)

    def add_state(self, output: StepOutput) -> None:
        """The step's number, the load, and what changed in the prefix cache."""
        self.frame.step = output.step
        if output.load is not None:
            load = output.load
            self.frame.load.num_running = load.num_running
            self.frame.load.num_waiting = load.num_waiting
            self.frame.load.num_used_blocks = load.num_used_blocks
            self.frame.load.num_blocks = load.num_blocks
            self.frame.load.num_preemptions = load.num_preemptions
            self.frame.load.num_waiting_tokens = load.num_waiting_tokens
        if output.stored_hashes or output.removed_hashes:
            self.frame.cache_events.stored.extend(output.stored_hashes)
            self.frame.cache_events.removed.extend(output.removed_hashes)

    def build(self) -> executor_pb2.SessionResponse:
        frame = self.frame
        handles, epochs, indexes = zip(*self._deltas, strict=True) if self._deltas else ((), (), ())
        firsts, tokens = zip(*self._deltas.values(), strict=True) if self._deltas else ((), ())
        frame.handles.extend(handles)
        frame.epochs.extend(epochs)
        frame.sequence_indexes.extend(indexes)
        frame.token_indexes.extend(firsts)
        if any(len(ids) != 1 for ids in tokens):
            frame.num_tokens.extend(map(len, tokens))
        frame.token_ids.extend(token_id for ids in tokens for token_id in ids)
        return executor_pb2.SessionResponse(step=frame)


class Outbox:
    """What waits to be sent to a session: other messages in order, and at most one pending frame.

    The engine never waits for a frontend: while the stream takes no more, steps are merged into the pending frame,
    whose size is bounded by what the session's requests can generate.
    """

    def __init__(self) -> None:
        self._messages: list[executor_pb2.SessionResponse] = []
        self._frame: FrameBuilder | None = None
        self._ready = asyncio.Event()
        self._closed = False
        self.num_merged_steps = 0

    def put(self, message: executor_pb2.SessionResponse) -> None:
        """Queues a message behind everything that came before it."""
        self._flush_frame()
        self._messages.append(message)
        self._ready.set()

    def frame(self) -> FrameBuilder:
        """The pending frame, to add a step's outputs to."""
        if self._frame is None:
            self._frame = FrameBuilder()
        else:
            self.num_merged_steps += 1
        self._ready.set()
        return self._frame

    def put_pooled(self, handle: int, output: PooledOutput, step: int) -> FrameBuilder:
        """Adds rows to the pending frame, and begins another where they are too many for one message; gives the last one."""
        frame = self._frame or self.frame()
        num_rows, num_columns = output.rows.shape
        per_frame = max(1, _MOST_POOLED_BYTES // (4 * num_columns))
        for first in range(0, max(1, num_rows), per_frame):
            rows = output.rows[first : first + per_frame]
            if frame.num_pooled_bytes and frame.num_pooled_bytes + rows.nbytes > _MOST_POOLED_BYTES:
                frame.frame.step = step
                self._flush_frame()
                frame = self.frame()
            last = first + per_frame >= num_rows
            part = dataclasses.replace(
                output, first_row=output.first_row + first, rows=rows, finished=output.finished and last
            )
            frame.add_pooled(handle, part)
        return frame

    def close(self) -> None:
        """Ends the stream after what is queued."""
        self._closed = True
        self._ready.set()

    def _flush_frame(self) -> None:
        if self._frame is not None:
            self._messages.append(self._frame.build())
            self._frame = None

    async def messages(self) -> AsyncIterator[executor_pb2.SessionResponse]:
        """Everything that is put, in order, until close()."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            self._flush_frame()
            messages, self._messages = self._messages, []
            for message in messages:
                yield message
            if self._closed and not self._messages and self._frame is None:
                return
