"""Owns the executor's gRPC side: sessions, the split of step outputs among them, health and drain."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from forebay.errors import FailedPrecondition, InvalidRequest, Unavailable
from forebay.executor.v1 import executor_pb2
from forebay.rpc import KEEPALIVE_OPTIONS, add_service
from forebay.v1.errors_pb2 import ErrorReason
from forebay.v1.media_pb2 import MediaKind
from forebay.v1.model_pb2 import ModelDtype, ModelTask
from gpu_executor.config import ExecutorConfig
from gpu_executor.engine import Engine, StepOutput
from gpu_executor.engine_loop import EngineLoop
from gpu_executor.media_store import MediaStore
from gpu_executor.model_info import ModelInfo
from gpu_executor.outputs import FrameBuilder
from gpu_executor.session import Session, check_fingerprint

logger = logging.getLogger(__name__)

SERVICE = executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"]


class ExecutorServicer:
    """Implements ExecutorService over one engine."""

    def __init__(self, engine: Engine, info: ModelInfo, config: ExecutorConfig) -> None:
        self.engine, self.info, self.config = engine, info, config
        self.executor_id = uuid.uuid4().hex
        self.draining = False
        self.died = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self.sessions: set[Session] = set()
        self.num_steps_with_tokens = 0
        # Idle items may take as much as one session's: the next request often has the same picture.
        self.media_window_bytes = config.media_window_bytes if info.modalities else 0
        self.media_store = MediaStore(self.media_window_bytes)
        self.loop = EngineLoop(engine, self._on_step, self._on_death)

    async def Session(
        self, requests: AsyncIterator[executor_pb2.SessionRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[executor_pb2.SessionResponse]:
        """One frontend's session, until it goes away, falls silent or does what it must not."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("kind") != "hello":
            raise InvalidRequest("a session begins with Hello")
        check_fingerprint(first.hello.fingerprint, self._fingerprint())
        session = Session(self, first.hello)
        session.outbox.put(executor_pb2.SessionResponse(welcome=self._welcome()))
        self._send_state(session)
        if self.draining:
            session.outbox.put(executor_pb2.SessionResponse(draining=executor_pb2.Draining()))
        self.sessions.add(session)
        logger.info("session with frontend %r from %s", session.frontend_id, context.peer())
        reading = asyncio.ensure_future(session.read(requests))
        lease = asyncio.ensure_future(session.watch_lease())
        for task in (reading, lease):
            task.add_done_callback(lambda _: session.outbox.close())
        try:
            async for message in session.outbox.messages():
                yield message
            if reading.done():
                reading.result()
            else:
                raise FailedPrecondition("the lease was not renewed", ErrorReason.ERROR_REASON_CANCELLED)
        finally:
            self.sessions.discard(session)
            session.end()
            reading.cancel()
            lease.cancel()

    def drain(self) -> None:
        """Takes nothing new from now on, and says so to every frontend."""
        self.draining = True
        for session in self.sessions:
            session.outbox.put(executor_pb2.SessionResponse(draining=executor_pb2.Draining()))

    def close_sessions(self) -> None:
        """Ends every session after what is queued for it."""
        for session in self.sessions:
            session.outbox.close()

    @property
    def num_requests(self) -> int:
        return sum(len(session.handles) for session in self.sessions)

    def _on_step(self, output: StepOutput) -> None:
        """Splits a step's output: one frame per session that got something."""
        frames: dict[Session, FrameBuilder] = {}

        def frame(session: Session) -> FrameBuilder:
            if session not in frames:
                frames[session] = session.outbox.frame()
            return frames[session]

        for request in output.started:
            frame(request.owner).add_prefix_hit(request.key[1], request)
        for item in output.prompt_logprobs:
            frame(item.request.owner).add_prompt_logprobs(item.request.key[1], item)
        for pooled in output.pooled:
            session, handle = pooled.request.owner, pooled.request.key[1]
            frame(session)
            frames[session] = session.outbox.put_pooled(handle, pooled, output.step)
            if pooled.finished:
                session.finished(handle)
        for token in output.tokens:
            request = token.sequence.request
            frame(request.owner).add_token(request.key[1], token)
            if token.ends_request:
                request.owner.finished(request.key[1])
        if output.tokens or output.pooled:
            self.num_steps_with_tokens += 1
        # Frontends without tokens in this step hear of it too when the prefix cache changed, so that all know the same.
        for session in self.sessions if output.stored_hashes or output.removed_hashes else frames:
            frame(session).add_state(output)
        for request, error in output.failed:
            request.owner.reject(request.key[1], error)

    def _send_state(self, session: Session) -> None:
        """Tells a new session what the prefix cache holds, and the load."""

        def state(engine: Engine) -> StepOutput:
            cache = engine.scheduler.pool.prefix_cache
            return StepOutput(engine.num_steps, engine.load(), cache.known_hashes() if cache is not None else [])

        self.loop.call(state, lambda output: session.outbox.frame().add_state(output))

    def _on_death(self, error: BaseException) -> None:
        """The engine cannot go on: every session breaks, so that frontends resume elsewhere, and the process ends."""
        for session in list(self.sessions):
            for handle in list(session.handles):
                session.reject(
                    handle,
                    Unavailable("the executor failed", ErrorReason.ERROR_REASON_EXECUTOR_LOST, retry_after_ms=1000),
                )
        self.died.set()

    def _fingerprint(self) -> executor_pb2.Fingerprint:
        info = self.info
        return executor_pb2.Fingerprint(
            model_digest=info.model_digest,
            tokenizer_digest=info.tokenizer_digest,
            processor_version=info.processor_version,
            vocab_size=info.vocab_size,
        )

    def _welcome(self) -> executor_pb2.Welcome:
        info = self.info
        return executor_pb2.Welcome(
            executor_id=self.executor_id,
            fingerprint=self._fingerprint(),
            lease_ms=self.config.lease_ms,
            max_model_len=info.max_model_len,
            architecture=info.architecture,
            dtype=ModelDtype.Value(f"MODEL_DTYPE_{info.dtype.upper()}"),
            eos_token_ids=info.eos_token_ids,
            block_size=info.block_size,
            num_blocks=info.num_blocks,
            max_num_seqs=info.max_num_seqs,
            prefix_caching=info.prefix_caching,
            tasks=[ModelTask.Value(f"MODEL_TASK_{task.upper()}") for task in info.tasks],
            embedding_size=info.embedding_size,
            num_classes=info.num_classes,
            num_token_types=info.num_token_types,
            media_kinds=[MediaKind.Value(f"MEDIA_KIND_{modality.upper()}") for modality in info.modalities],
            media_window_bytes=self.media_window_bytes,
        )


class ExecutorServer:
    """The gRPC server of an executor: SERVING while it takes requests, NOT_SERVING while it loads or drains."""

    def __init__(self, config: ExecutorConfig) -> None:
        self.config = config
        options = (
            *KEEPALIVE_OPTIONS,
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", -1),  # frames are bounded by what the engine makes
            ("grpc.so_reuseport", 0),
        )
        self._server = grpc.aio.server(options=options)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.servicer: ExecutorServicer | None = None
        self.port = 0

    async def listen(self) -> None:
        """Binds the port and answers health checks with NOT_SERVING, so that a slow load can be watched."""
        self.port = self._server.add_insecure_port(self.config.listen)
        self._pending = _PendingServicer()
        add_service(self._server, SERVICE, self._pending)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def serve(self, engine: Engine, info: ModelInfo) -> ExecutorServicer:
        """Takes sessions from now on."""
        self.servicer = self._pending.servicer = ExecutorServicer(engine, info, self.config)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return self.servicer

    async def drain(self, grace_s: float) -> None:
        """Lets running requests finish within the grace, refuses new ones, then stops."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self.servicer is not None:
            self.servicer.drain()
            loop = asyncio.get_running_loop()
            end = loop.time() + grace_s
            while self.servicer.num_requests and loop.time() < end and not self.servicer.died.is_set():
                await asyncio.sleep(0.02)
            self.servicer.close_sessions()
            await self.servicer.loop.stop()
        await self._server.stop(grace=1.0)

    async def _set_health(self, status: int) -> None:
        for service in ("", SERVICE.full_name):
            await self._health.set(service, status)


class _PendingServicer:
    """Stands in front of the servicer, which exists when the model is loaded."""

    servicer: ExecutorServicer | None = None

    async def Session(
        self, requests: AsyncIterator[executor_pb2.SessionRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[executor_pb2.SessionResponse]:
        if self.servicer is None:
            raise Unavailable("the model is still loading", retry_after_ms=1000)
        async for response in self.servicer.Session(requests, context):
            yield response
