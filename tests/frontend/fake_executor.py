"""Owns a stand-in for an executor: the real session protocol, tokens from a formula, and faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import grpc

from forebay.block_hash import block_digests, short_hash
from forebay.errors import FailedPrecondition, Unavailable
from forebay.executor.v1 import executor_pb2 as wire
from forebay.rpc import KEEPALIVE_OPTIONS, add_service
from forebay.v1.model_pb2 import MODEL_TASK_EMBED, MODEL_TASK_GENERATE, MODEL_TASK_REWARD

SERVICE = wire.DESCRIPTOR.services_by_name["ExecutorService"]
WAIT_S = 5.0


def token_at(seed: int, sequence_index: int, position: int, vocab_size: int = 1000) -> int:
    """The token that a fake executor samples: a function of seed, sequence and position, as the real one's is."""
    return (seed * 7919 + sequence_index * 104_729 + position * 613 + position * position * 31) % vocab_size


def expected_tokens(seed: int, sequence_index: int, num: int, vocab_size: int = 1000) -> list[int]:
    """What a request's sequence must be, whatever happened to its executors."""
    return [token_at(seed, sequence_index, position, vocab_size) for position in range(num)]


def pooled_at(token_ids: Sequence[int], row: int, column: int) -> float:
    """The number that a fake executor pools: a function of the tokens up to a row's, and of the column."""
    return float((sum(token_ids[: row + 1]) * 31 + row * 5 + column * 7) % 97 - 48)


@dataclass
class Running:
    """A request aboard."""

    submit: wire.Submit
    session: Session
    tokens: list[list[int]] = field(default_factory=list)
    open: set[int] = field(default_factory=set)
    first_step: bool = True
    num_rows: int = 0  # of a pooling result, that were sent


class Session:
    """A frontend's stream."""

    def __init__(self) -> None:
        self.outgoing: asyncio.Queue[wire.SessionResponse | Exception | None] = asyncio.Queue()
        self.requests: dict[int, Running] = {}

    def send(self, **kind: object) -> None:
        self.outgoing.put_nowait(wire.SessionResponse(**kind))


class FakeExecutor:
    """An ExecutorService without a model. Nothing moves until `step` is called, unless `auto` is on."""

    def __init__(
        self,
        *,
        auto: bool = False,
        vocab_size: int = 1000,
        max_model_len: int = 100_000,
        block_size: int = 4,
        model_digest: str = "digest",
        tokenizer_digest: str = "",
        lease_ms: int = 10_000,
        max_aboard: int = 1 << 30,
        tasks: Sequence[int] = (MODEL_TASK_GENERATE,),
        embedding_size: int = 0,
        num_classes: int = 0,
        num_token_types: int = 0,
        max_num_seqs: int = 16,
    ) -> None:
        self.tasks, self.embedding_size, self.num_classes = tasks, embedding_size, num_classes
        self.num_token_types, self.max_num_seqs = num_token_types, max_num_seqs
        self.auto, self.max_aboard, self.lease_ms = auto, max_aboard, lease_ms
        self.vocab_size, self.max_model_len, self.block_size = vocab_size, max_model_len, block_size
        self.fingerprint = wire.Fingerprint(
            model_digest=model_digest, tokenizer_digest=tokenizer_digest, vocab_size=vocab_size
        )
        self.draining, self.silent = False, False
        self.welcomes, self.accepts = True, True  # off: says nothing of a session, or of a Submit
        self.checks_fingerprint = True
        self.rejection: wire.Rejected | None = None  # for the next Submit
        self.rejects_all: wire.Rejected | None = None
        self.tamper: Callable[[wire.StepFrame], list[wire.StepFrame]] = lambda frame: [frame]
        self.on_submit: Callable[[wire.Submit], None] = lambda submit: None
        self.submits: list[wire.Submit] = []
        self.aborts: list[wire.Abort] = []
        self.num_renews, self.num_sessions, self.num_steps, self.port = 0, 0, 0, 0
        self.extra_load = 0
        self.sessions: set[Session] = set()
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self._stepper: asyncio.Task[None] | None = None
        self._work = asyncio.Event()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def num_aboard(self) -> int:
        return sum(len(session.requests) for session in self.sessions)

    async def start(self) -> FakeExecutor:
        self._server = grpc.aio.server(options=(*KEEPALIVE_OPTIONS, ("grpc.so_reuseport", 0)))
        add_service(self._server, SERVICE, self)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        self._stepper = asyncio.create_task(self._step_for_ever())
        return self

    async def kill(self) -> None:
        """Goes away at once, as a process that is killed; `start` brings it back on the same port."""
        if self._stepper is not None:
            self._stepper.cancel()
        if self._server is not None:
            await self._server.stop(0)

    def break_sessions(self) -> None:
        """Breaks every stream; the server stays."""
        for session in self.sessions:
            session.outgoing.put_nowait(Unavailable("broken by the test"))

    def drain(self) -> None:
        self.draining = True
        for session in self.sessions:
            session.send(draining=wire.Draining())

    async def saw(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; it is looked at after every message and step."""
        async with self._changed:
            await asyncio.wait_for(self._changed.wait_for(condition), WAIT_S)

    async def step(self, num: int = 1) -> None:
        """Makes that many steps: a token for each open sequence, a frame for each session."""
        for _ in range(num):
            self.num_steps += 1
            for session in list(self.sessions):
                frame = self._frame(session)
                if frame.handles or frame.prompt_logprobs or frame.pooled:
                    for sent in self.tamper(frame):
                        session.send(step=sent)
        await self._note()

    async def Session(
        self, requests: AsyncIterator[wire.SessionRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[wire.SessionResponse]:
        first = await anext(aiter(requests), None)
        if first is None:  # the frontend left before it said anything
            return
        hello = first.hello
        for name in ("model_digest", "tokenizer_digest") if self.checks_fingerprint else ():
            ours, theirs = getattr(self.fingerprint, name), getattr(hello.fingerprint, name)
            if ours and theirs and ours != theirs:
                raise FailedPrecondition(f"{name} differs")
        session = Session()
        self.sessions.add(session)
        self.num_sessions += 1
        if self.welcomes:
            session.send(welcome=self._welcome())
        if self.draining:
            session.send(draining=wire.Draining())
        reader = asyncio.create_task(self._read(session, requests))
        try:
            await self._note()
            while (message := await session.outgoing.get()) is not None:
                if isinstance(message, Exception):
                    raise message
                yield message
        finally:
            reader.cancel()
            self.sessions.discard(session)
            with contextlib.suppress(RuntimeError, asyncio.CancelledError):
                await self._note()

    def _welcome(self) -> wire.Welcome:
        return wire.Welcome(
            executor_id=f"fake-{self.port}",
            fingerprint=self.fingerprint,
            lease_ms=self.lease_ms,
            max_model_len=self.max_model_len,
            architecture="FakeForCausalLM",
            eos_token_ids=[],
            block_size=self.block_size,
            num_blocks=64,
            max_num_seqs=self.max_num_seqs,
            prefix_caching=True,
            tasks=self.tasks,
            embedding_size=self.embedding_size,
            num_classes=self.num_classes,
            num_token_types=self.num_token_types,
        )

    async def _read(self, session: Session, requests: AsyncIterator[wire.SessionRequest]) -> None:
        async for request in requests:
            match request.WhichOneof("kind"):
                case "submit":
                    self.submits.append(request.submit)
                    self.on_submit(request.submit)
                    self._take(session, request.submit)
                case "abort":
                    self.aborts.append(request.abort)
                    self._abort(session, request.abort)
                case "renew":
                    self.num_renews += 1
            await self._note()
        session.outgoing.put_nowait(None)

    def _take(self, session: Session, submit: wire.Submit) -> None:
        rejection, self.rejection = self.rejection or self.rejects_all, None
        if rejection is not None:
            rejected = wire.Rejected()
            rejected.CopyFrom(rejection)
            rejected.handle = submit.handle
            session.send(rejected=rejected)
            return
        num_sequences = max(1, submit.sampling.n)
        running = Running(submit, session, [[] for _ in range(num_sequences)], set(range(num_sequences)))
        for resumed in submit.resumed:
            running.tokens[resumed.sequence_index] = list(resumed.token_ids)
            if resumed.finished:
                running.open.discard(resumed.sequence_index)
        session.requests[submit.handle] = running
        if self.accepts:
            session.send(accepted=wire.Accepted(handle=submit.handle))
        self._work.set()

    def _abort(self, session: Session, abort: wire.Abort) -> None:
        running = session.requests.get(abort.handle)
        if running is not None:
            running.open -= {abort.sequence_index} if abort.HasField("sequence_index") else set(running.open)
            if not running.open:
                del session.requests[abort.handle]
        session.send(aborted=wire.Aborted(handle=abort.handle, was_running=running is not None))

    def _frame(self, session: Session) -> wire.StepFrame:
        frame = wire.StepFrame(step=self.num_steps)
        for handle, running in list(session.requests.items()):
            self._add(frame, handle, running)
            if not running.open:
                del session.requests[handle]
        num_running = sum(len(request.open) for s in self.sessions for request in s.requests.values())
        frame.load.num_running = num_running + self.extra_load
        return frame

    def _add(self, frame: wire.StepFrame, handle: int, running: Running) -> None:
        submit, sampling = running.submit, running.submit.sampling
        if running.first_step:
            running.first_step = False
            frame.prefix_hits.add(handle=handle, num_tokens=2)
            stored = block_digests(list(submit.prompt_token_ids), self.block_size, submit.cache_salt)
            frame.cache_events.stored.extend(short_hash(digest) for digest in stored)
            if sampling.HasField("prompt_logprobs"):
                self._add_prompt_logprobs(frame, submit)
        if submit.HasField("pooling"):
            self._add_pooled(frame, running)
            return
        for index in sorted(running.open):
            tokens = running.tokens[index]
            token = token_at(sampling.seed, index, len(tokens), self.vocab_size)
            frame.handles.append(handle)
            frame.epochs.append(submit.epoch)
            frame.sequence_indexes.append(index)
            frame.token_indexes.append(len(tokens))
            frame.token_ids.append(token)
            if sampling.HasField("logprobs"):
                frame.logprobs.add(
                    handle=handle, sequence_index=index, token_index=len(tokens), logprob=-len(tokens) - 0.5, rank=1,
                    top_ids=[token] * sampling.logprobs, top_logprobs=[-0.5] * sampling.logprobs,
                )  # fmt: skip
            tokens.append(token)
            stopped = token in sampling.stop_token_ids
            if stopped or len(tokens) >= sampling.max_tokens:
                running.open.discard(index)
                reason = wire.SEQUENCE_FINISH_REASON_STOP if stopped else wire.SEQUENCE_FINISH_REASON_LENGTH
                finish = frame.finishes.add(handle=handle, epoch=submit.epoch, sequence_index=index, reason=reason)
                if stopped:
                    finish.stop_token_id = token

    def _add_pooled(self, frame: wire.StepFrame, running: Running) -> None:
        """One row for the last token, or, of rewards, one for each token and two in a step."""
        submit, params = running.submit, running.submit.pooling
        last = len(submit.prompt_token_ids) - 1
        num_columns = self.num_classes
        if params.task == MODEL_TASK_EMBED:
            num_columns = params.dimensions if params.HasField("dimensions") else self.embedding_size
        rows = (
            range(running.num_rows, min(running.num_rows + 2, last + 1)) if params.task == MODEL_TASK_REWARD else [last]
        )
        values = [pooled_at(submit.prompt_token_ids, row, column) for row in rows for column in range(num_columns)]
        finished = params.task != MODEL_TASK_REWARD or rows[-1] == last
        frame.pooled.add(
            handle=submit.handle, epoch=submit.epoch, first_row=running.num_rows, num_rows=len(rows),
            num_columns=num_columns, values=struct.pack(f"<{len(values)}f", *values), finished=finished,
        )  # fmt: skip
        running.num_rows += len(rows)
        if finished:
            running.open.clear()

    def _add_prompt_logprobs(self, frame: wire.StepFrame, submit: wire.Submit) -> None:
        num, top = len(submit.prompt_token_ids) - 1, submit.sampling.prompt_logprobs
        for first in range(1, num + 1, 2):  # in parts, as chunked prefill gives them
            size = min(2, num + 1 - first)
            frame.prompt_logprobs.add(
                handle=submit.handle, epoch=submit.epoch, first_position=first, num_top=top,
                logprobs=[-float(first + i) for i in range(size)], ranks=[1] * size,
                top_ids=[7] * (size * top), top_logprobs=[-1.0] * (size * top),
            )  # fmt: skip

    async def _step_for_ever(self) -> None:
        while True:
            if self.auto and not self.silent and self.num_aboard:
                await self.step()
                await asyncio.sleep(0)
            else:
                self._work.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._work.wait(), 0.02)

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()
