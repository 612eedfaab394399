"""Owns prompts with media that preprocess services encode: which service, how many at once, what becomes of errors."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

import grpc

from forebay.errors import DeadlineExceeded, FailedPrecondition, ForebayError, ResourceExhausted, Unavailable
from forebay.executor.v1 import executor_pb2 as wire
from forebay.preprocess.v1 import preprocess_pb2 as api
from forebay.rpc import KEEPALIVE_OPTIONS, error_from_rpc
from forebay.v1 import prompt_pb2
from forebay.v1.errors_pb2 import ErrorReason
from frontend import resolver
from preprocess.ready_prompt import ReadyPrompt

logger = logging.getLogger(__name__)

SERVICE = api.DESCRIPTOR.services_by_name["PreprocessService"].full_name
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *KEEPALIVE_OPTIONS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", -1),  # what a client may send is bounded where it comes in
    ("grpc.max_receive_message_length", 16 << 20),  # chunks and ids
)
MAX_TRIES = 2  # on services that differ; encoding has no effect that could happen twice


class PreprocessClient:
    """The preprocess services of a frontend. A prompt goes to the one that has the fewest of this frontend's.

    At most `max_running` prompts are with the services at once, and `max_waiting` wait for their turn.
    """

    def __init__(
        self,
        services: str,
        fingerprint: wire.Fingerprint,
        *,
        max_running: int,
        max_waiting: int,
        timeout_s: float,
        dns_refresh_s: float = 5.0,
    ) -> None:
        self._name, addresses = resolver.parse_executors(services, flag="--preprocessors")
        self._fingerprint, self._timeout_s, self._dns_refresh_s = fingerprint, timeout_s, dns_refresh_s
        self._running, self._num_waiting, self._max_waiting = asyncio.Semaphore(max_running), 0, max_waiting
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._addresses: tuple[str, ...] = addresses
        self._num_running: defaultdict[str, int] = defaultdict(int)
        self._checked: set[str] = set()  # addresses whose service holds what we do
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look up the services, if they are given by a name."""
        if self._name is not None:
            self._watch = asyncio.create_task(resolver.watch(self._name, self._dns_refresh_s, self._set_addresses))

    async def close(self) -> None:
        """Closes the connections."""
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def encode(
        self, prompt: prompt_pb2.Prompt, *, max_tokens: int | None, cut: int | None, dtype: int
    ) -> ReadyPrompt:
        """The prompt as executors take it. Raises what the service says of the prompt, and Unavailable if there is none."""
        if self._num_waiting >= self._max_waiting:
            raise ResourceExhausted(f"{self._num_waiting} prompts with media wait", retry_after_ms=1000)
        self._num_waiting += 1
        try:
            await self._running.acquire()
        finally:
            self._num_waiting -= 1
        try:
            request = api.EncodeRequest(prompt=prompt, max_tokens=max_tokens, keep_tokens=cut, dtype=dtype)
            return await self._try_services(request)
        finally:
            self._running.release()

    async def _try_services(self, request: api.EncodeRequest) -> ReadyPrompt:
        tried: set[str] = set()
        error: ForebayError = Unavailable("no preprocess service is known", retry_after_ms=1000)
        for _ in range(MAX_TRIES):
            left = [address for address in self._addresses if address not in tried]
            if not left:
                break
            address = min(left, key=self._num_running.__getitem__)
            tried.add(address)
            self._num_running[address] += 1
            try:
                return await self._encode_at(address, request)
            except grpc.RpcError as failure:
                error = error_from_rpc(failure)
                if error.code not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
                    raise _as_ours(error) from None
                logger.warning("preprocess service %s: %s", address, error.message)
            except FailedPrecondition as failure:
                error = failure
                logger.error("preprocess service %s is refused: %s", address, failure.message)
            finally:
                self._num_running[address] -= 1
        raise _as_ours(error)

    async def _encode_at(self, address: str, request: api.EncodeRequest) -> ReadyPrompt:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        if address not in self._checked:
            await self._check(channel)
            self._checked.add(address)
        call = channel.unary_stream(
            f"/{SERVICE}/Encode",
            request_serializer=api.EncodeRequest.SerializeToString,
            response_deserializer=api.EncodeResponse.FromString,
        )(request, timeout=self._timeout_s)
        head: api.EncodedPrompt | None = None
        parts: defaultdict[bytes, list[bytes]] = defaultdict(list)
        try:
            async for response in call:
                if response.HasField("prompt"):
                    head = response.prompt
                else:
                    parts[response.chunk.digest].append(response.chunk.data)
        finally:
            call.cancel()
        if head is None:
            raise ForebayError("a preprocess service gave no prompt")
        return ReadyPrompt.from_message(head, {digest: b"".join(found) for digest, found in parts.items()})

    async def _check(self, channel: grpc.aio.Channel) -> None:
        """Raises FailedPrecondition if the service holds something else than we do."""
        theirs = (
            await channel.unary_unary(
                f"/{SERVICE}/Describe",
                request_serializer=api.DescribeRequest.SerializeToString,
                response_deserializer=api.DescribeResponse.FromString,
            )(api.DescribeRequest(), timeout=self._timeout_s)
        ).fingerprint
        for name in ("model_digest", "tokenizer_digest", "processor_version"):
            if (their := getattr(theirs, name)) and (our := getattr(self._fingerprint, name)) and their != our:
                raise FailedPrecondition(f"it has another {name}: {their}, where the frontend has {our}")

    def _set_addresses(self, addresses: tuple[str, ...]) -> None:
        self._addresses = addresses
        self._checked.intersection_update(addresses)
        for address in self._channels.keys() - set(addresses):
            channel = self._channels.pop(address)
            asyncio.get_running_loop().create_task(channel.close(grace=self._timeout_s))


def _as_ours(error: ForebayError) -> ForebayError:
    """An error of a service as a client of the frontend is to see it."""
    if isinstance(error, FailedPrecondition) and error.reason == ErrorReason.ERROR_REASON_FINGERPRINT_MISMATCH:
        return Unavailable("no preprocess service serves this model", retry_after_ms=1000)
    if isinstance(error, DeadlineExceeded):
        return Unavailable("the preprocess service did not answer in time", retry_after_ms=1000)
    return error
