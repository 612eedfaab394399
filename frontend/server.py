"""Owns the frontend as a gRPC server: services, health, reflection, limits, and how it drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from forebay.errors import Unavailable
from forebay.executor.v1 import executor_pb2 as wire
from forebay.rpc import KEEPALIVE_OPTIONS, add_service
from forebay.v1 import generation_pb2, model_pb2, pooling_pb2, tokenizer_pb2
from forebay.v1.errors_pb2 import ErrorReason
from frontend.admission import DRAIN_RETRY_MS, Admission
from frontend.config import FrontendConfig
from frontend.dispatcher import Dispatcher
from frontend.executor_client import SessionSettings
from frontend.generation import GenerationService
from frontend.model_catalogue import ModelService, ServedModel
from frontend.output import Text
from frontend.pooling import PoolingService
from frontend.preprocess_client import PreprocessClient
from frontend.prompt_encoder import PromptEncoder
from frontend.request_scope import RequestScopes
from frontend.tokenization import TokenizerService
from preprocess.threads import PreprocessThreads

logger = logging.getLogger(__name__)

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
POOLING = pooling_pb2.DESCRIPTOR.services_by_name["PoolingService"]
TOKENIZER = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"]
MODEL = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
SERVICE_NAMES = tuple(service.full_name for service in (GENERATION, POOLING, TOKENIZER, MODEL))

# A health name of its own for liveness: "" and the services say whether requests can be served, which an executor's
# loss changes and a restart of the frontend would not mend.
LIVENESS = "liveness"

MEDIA_THREADS_PER_WORKER = 4  # most of which wait for hosts
SOFT_METADATA_BYTES, HARD_METADATA_BYTES = 8 << 10, 16 << 10
LAST_BYTES_S = 1.0  # for statuses under way, and for health watchers to be told, before connections close


class FrontendServer:
    """Everything of a frontend that serves one model; `resolve_sampling` and `make_text` are for GenerationService."""

    def __init__(
        self,
        config: FrontendConfig,
        model: ServedModel,
        settings: SessionSettings,
        *,
        resolve_sampling: Callable[..., Any],
        make_text: Callable[..., Text],
    ) -> None:
        self._config = config
        self.admission = Admission(max_running=config.max_concurrent_requests, max_queued=config.max_queue_size)
        self.dispatcher = Dispatcher(
            config.executors, settings, wait_s=config.executor_wait_s, dns_refresh_s=config.dns_refresh_s
        )
        self.dispatcher.on_change = self._readiness_changed
        self._threads = PreprocessThreads(
            model.preprocessor,
            config.preprocess_threads,
            config.max_queue_size,
            num_media_threads=MEDIA_THREADS_PER_WORKER * config.media_workers,
        )
        self._services = None
        if config.preprocessors:
            self._services = PreprocessClient(
                config.preprocessors,
                settings.fingerprint,
                max_running=config.max_concurrent_encodes,
                max_waiting=config.max_queue_size,
                timeout_s=config.preprocess_timeout_s,
                dns_refresh_s=config.dns_refresh_s,
            )
        encoder = PromptEncoder(self._threads, self._services)
        self._scopes = RequestScopes(model, self.admission, config.default_timeout_s)
        self._generation = GenerationService(
            encoder,
            self._scopes,
            self.dispatcher,
            resolve_sampling=resolve_sampling,
            make_text=make_text,
            max_unsent_bytes=config.max_unsent_bytes,
        )
        self._pooling = PoolingService(
            model, encoder, self._scopes, self.dispatcher, max_answer_bytes=config.max_message_bytes
        )
        check_open = self.admission.check_open
        self._tokenizer = TokenizerService(model, self._threads, self.dispatcher, check_open)
        self._models = ModelService(model, self.dispatcher, check_open)
        self._health = health.aio.HealthServicer()
        self._health_tasks: set[asyncio.Task[None]] = set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Begins to listen and to look for executors; returns the port. Raises OSError if the address cannot be had."""
        server = self._server = grpc.aio.server(options=_options(self._config))
        add_service(server, GENERATION, self._generation)
        add_service(server, POOLING, self._pooling)
        add_service(server, TOKENIZER, self._tokenizer)
        add_service(server, MODEL, self._models)
        add_service(server, HEALTH, self._health)
        names = (*SERVICE_NAMES, HEALTH.full_name, REFLECTION.full_name)
        add_service(server, REFLECTION, reflection.aio.ReflectionServicer(names))
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._set_health(False)
        try:
            host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
            port = server.add_insecure_port(f"{host}:{self._config.port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._config.host}:{self._config.port}: {error}") from error
        await server.start()
        self.dispatcher.start()
        if self._services is not None:
            self._services.start()
        return port

    async def drain(self, grace_s: float) -> None:
        """Refuses what is new, lets what runs finish within `grace_s`, and ends the rest; the listener stays up."""
        self.admission.draining = True
        await self._set_health(False)
        ledger = self.admission.ledger
        logger.info("draining: %d requests run, %d wait", ledger.running, ledger.queued)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.admission.idle(), grace_s)
        if ledger.in_flight:
            logger.warning("%d requests did not finish within %g s", ledger.in_flight, grace_s)
            error = Unavailable(
                "the server shut down before the request was finished",
                ErrorReason.ERROR_REASON_DRAINING,
                retry_after_ms=DRAIN_RETRY_MS,
            )
            self._scopes.end_all(error)

    async def stop(self) -> None:
        """Closes the listener, the sessions and the threads."""
        if self._server is not None:
            await self._server.stop(LAST_BYTES_S)
        await self.dispatcher.close()
        if self._services is not None:
            await self._services.close()
        self._threads.close()

    def _readiness_changed(self, ready: bool) -> None:
        logger.info("%s", "serving" if ready else "not serving: no executor")
        task = asyncio.create_task(self._set_health(ready))
        self._health_tasks.add(task)
        task.add_done_callback(self._health_tasks.discard)

    async def _set_health(self, ready: bool) -> None:
        serving = ready and not self.admission.draining
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICE_NAMES):
            await self._health.set(name, status)


def session_settings(config: FrontendConfig, frontend_id: str, fingerprint: wire.Fingerprint) -> SessionSettings:
    """The part of the config that sessions need."""
    return SessionSettings(
        frontend_id=frontend_id,
        fingerprint=fingerprint,
        connect_timeout_s=config.executor_connect_timeout_s,
        stall_s=config.executor_stall_s,
    )


def _options(config: FrontendConfig) -> list[tuple[str, int]]:
    return [
        *KEEPALIVE_OPTIONS,
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_metadata_size", SOFT_METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", HARD_METADATA_BYTES),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a load balancer
    ]
