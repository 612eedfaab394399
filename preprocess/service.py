"""Owns PreprocessService: prompts with media in, ids and tensors out, and how the server drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from forebay.errors import InvalidRequest, Unavailable
from forebay.executor.v1 import executor_pb2 as wire
from forebay.preprocess.v1 import preprocess_pb2 as api
from forebay.rpc import KEEPALIVE_OPTIONS, add_service
from forebay.v1 import prompt_pb2
from forebay.v1.errors_pb2 import ErrorReason
from forebay.v1.model_pb2 import ModelDtype
from preprocess.config import PreprocessConfig
from preprocess.media_item import EncodedPrompt
from preprocess.ready_prompt import ReadyPrompt
from preprocess.threads import PreprocessThreads

logger = logging.getLogger(__name__)

PREPROCESS = api.DESCRIPTOR.services_by_name["PreprocessService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]

# Runs the model's tower over a prompt's items, whose tensors become rows of embeddings.
EncodeMedia = Callable[[EncodedPrompt], EncodedPrompt]


class PreprocessServicer:
    """forebay.preprocess.v1.PreprocessService over one checkpoint."""

    def __init__(
        self, threads: PreprocessThreads, fingerprint: wire.Fingerprint, encode_media: EncodeMedia | None = None
    ) -> None:
        self._threads, self._fingerprint, self._encode_media = threads, fingerprint, encode_media
        self.draining = False
        self.num_running = 0

    async def Describe(self, request: api.DescribeRequest, context: grpc.aio.ServicerContext) -> api.DescribeResponse:
        """What the service holds."""
        return api.DescribeResponse(fingerprint=self._fingerprint, encodes_media=self._encode_media is not None)

    async def Encode(
        self, request: api.EncodeRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[api.EncodeResponse]:
        """The prompt, then the tensors of each item that it has, once."""
        if self.draining:
            raise Unavailable("the server is shutting down", ErrorReason.ERROR_REASON_DRAINING, retry_after_ms=1000)
        self._threads.check_room()
        self.num_running += 1
        try:
            ready = await self._threads.run_on(request.prompt, self._encode, request)
            yield api.EncodeResponse(prompt=ready.message())
            for item in {found.item.digest: found.item for found in ready.media}.values():
                offset = 0
                for piece in item.chunks():
                    chunk = wire.TensorChunk(digest=item.digest, offset=offset, data=bytes(piece))
                    yield api.EncodeResponse(chunk=chunk)
                    offset += len(piece)
        finally:
            self.num_running -= 1

    def _encode(self, request: api.EncodeRequest) -> ReadyPrompt:
        max_tokens = request.max_tokens if request.HasField("max_tokens") else None
        keep = request.keep_tokens if request.HasField("keep_tokens") else None
        if keep == 0:
            raise InvalidRequest(
                "keep_tokens is 0; it must be at least 1", fields=(("keep_tokens", "must be at least 1"),)
            )
        prompt: prompt_pb2.Prompt = request.prompt
        encoded = self._threads.preprocessor.encode_prompt(prompt, max_tokens=max_tokens).end(keep)
        if self._encode_media is not None and encoded.media:
            encoded = self._encode_media(encoded)
        return ReadyPrompt.of(encoded, float_dtype(request.dtype))


def float_dtype(dtype: int) -> str:
    """The name of a model's number format; float32 where none is known."""
    return (
        ModelDtype.Name(dtype).removeprefix("MODEL_DTYPE_").lower() if dtype in ModelDtype.values()[1:] else "float32"
    )


class PreprocessServer:
    """The gRPC server: health, reflection, limits, drain."""

    def __init__(self, config: PreprocessConfig, servicer: PreprocessServicer) -> None:
        self._config, self._servicer = config, servicer
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> int:
        """Begins to serve; returns the port. Raises OSError if the address cannot be had."""
        options = (
            *KEEPALIVE_OPTIONS,
            ("grpc.max_receive_message_length", self._config.max_message_bytes),
            ("grpc.max_send_message_length", self._config.max_message_bytes),
            ("grpc.so_reuseport", 0),
        )
        server = self._server = grpc.aio.server(options=options)
        add_service(server, PREPROCESS, self._servicer)
        add_service(server, HEALTH, self._health)
        names = (PREPROCESS.full_name, HEALTH.full_name, REFLECTION.full_name)
        add_service(server, REFLECTION, reflection.aio.ReflectionServicer(names))
        try:
            port = server.add_insecure_port(self._config.listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._config.listen}: {error}") from error
        await server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return port

    async def drain(self, grace_s: float) -> None:
        """Refuses what is new and lets what runs finish within `grace_s`."""
        self._servicer.draining = True
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        logger.info("draining: %d prompts are being encoded", self._servicer.num_running)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._servicer.num_running:
                    await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Closes the listener."""
        if self._server is not None:
            await self._server.stop(1.0)

    async def _set_health(self, status: int) -> None:
        for name in ("", PREPROCESS.full_name):
            await self._health.set(name, status)
