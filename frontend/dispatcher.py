"""Owns the executors as a set: which request is where, who takes over when one is lost, what all must agree on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from forebay.errors import FailedPrecondition, ForebayError, NotOffered, Unavailable
from forebay.executor.v1 import executor_pb2 as wire
from forebay.v1.errors_pb2 import ErrorReason
from forebay.v1.model_pb2 import MODEL_TASK_GENERATE, ModelDtype, ModelTask
from frontend import resolver, router
from frontend.executor_client import ExecutorClient, SessionSettings
from frontend.flight import Flight

logger = logging.getLogger(__name__)

MAX_LOSSES = 2  # a request that was aboard so many executors when they died may be why they died
REFUSED_PAUSE_MS = 250
NO_EXECUTOR_RETRY_MS = 1_000


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What executors tell about the model; all of a frontend's executors tell the same."""

    model_digest: str
    vocab_size: int
    max_model_len: int
    architecture: str
    dtype: int
    eos_token_ids: tuple[int, ...]
    tasks: tuple[int, ...]
    embedding_size: int
    num_classes: int
    num_token_types: int

    @classmethod
    def of(cls, welcome: wire.Welcome) -> ModelFacts:
        """The facts in a Welcome."""
        return cls(
            model_digest=welcome.fingerprint.model_digest,
            vocab_size=welcome.fingerprint.vocab_size,
            max_model_len=welcome.max_model_len,
            architecture=welcome.architecture,
            dtype=welcome.dtype,
            eos_token_ids=tuple(welcome.eos_token_ids),
            tasks=tuple(welcome.tasks) or (MODEL_TASK_GENERATE,),  # executors of earlier versions name none
            embedding_size=welcome.embedding_size,
            num_classes=welcome.num_classes,
            num_token_types=welcome.num_token_types,
        )

    @property
    def float_dtype(self) -> str:
        """The number format that the model computes in, in which tensors of media travel."""
        return ModelDtype.Name(self.dtype).removeprefix("MODEL_DTYPE_").lower() if self.dtype else "float32"

    def check_task(self, task: int) -> None:
        """Raises NotOffered, naming what the model does, unless it does this."""
        if task not in self.tasks:
            served = " and ".join(map(_task_name, self.tasks)) or "nothing that this version knows"
            raise NotOffered(f"this model serves {served}, not {_task_name(task)}")


def _task_name(task: int) -> str:
    return ModelTask.Name(task).removeprefix("MODEL_TASK_").lower() if task in ModelTask.values() else f"task {task}"


class Dispatcher:
    """Sends flights to executors and moves them on when an executor is lost.

    `on_change` is called when the first executor becomes ready, or the last one ceases to be.
    """

    def __init__(self, executors: str, settings: SessionSettings, *, wait_s: float, dns_refresh_s: float = 5.0) -> None:
        self._name, self._addresses = resolver.parse_executors(executors)
        self._settings, self._wait_s, self._dns_refresh_s = settings, wait_s, dns_refresh_s
        self._clients: dict[str, ExecutorClient] = {}
        self._waiting: dict[Flight, None] = {}  # in the order in which they came
        self._facts: ModelFacts | None = None
        self._facts_known = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._was_ready, self._max_num_seqs = False, 0
        self.on_change: Callable[[bool], None] = lambda ready: None

    @property
    def facts(self) -> ModelFacts | None:
        """The model as the executors have it, or had it last; None before the first session."""
        return self._facts

    @property
    def num_ready(self) -> int:
        """Executors that take requests."""
        return sum(client.ready for client in self._clients.values())

    @property
    def max_num_seqs(self) -> int:
        """Sequences that run at once at most, over all executors that take requests, or did last; at least 1."""
        return max(1, self._max_num_seqs)

    @property
    def num_flights(self) -> int:
        """Requests that are aboard an executor or wait for one."""
        return len(self._waiting) + sum(client.num_flights for client in self._clients.values())

    @property
    def ready(self) -> bool:
        """Whether any executor takes requests."""
        return any(client.ready for client in self._clients.values())

    def start(self) -> None:
        """Begins to connect to the executors."""
        if self._name is None:
            self._set_addresses(self._addresses)
        else:
            self._spawn(resolver.watch(self._name, self._dns_refresh_s, self._set_addresses))

    async def close(self) -> None:
        """Ends all sessions."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def wait_for_facts(self) -> ModelFacts:
        """The model's facts; raises Unavailable if no executor tells them in time."""
        if self._facts is None:
            try:
                async with asyncio.timeout(self._wait_s):  # wait_for may swallow a cancellation
                    await self._facts_known.wait()
            except TimeoutError:
                raise _no_executor() from None
        return self._facts

    def launch(self, flight: Flight) -> None:
        """Sends the flight to the best executor, or lets it wait for one."""
        clients = [client for client in self._clients.values() if client.ready and client not in flight.refused_by]
        if not clients:
            self._wait(flight)
            return
        client = clients[router.pick([client.load for client in clients], flight)]
        client.submit(flight)
        if len(self._clients) > 1:
            client.load.expect(flight)

    def release(self, flight: Flight) -> None:
        """Ends the flight wherever it is; may be called again."""
        flight.released = True
        self._waiting.pop(flight, None)
        if flight.owner is not None:
            flight.owner.abort(flight)

    # SessionEvents

    def check_welcome(self, client: ExecutorClient, welcome: wire.Welcome) -> None:
        """Raises FailedPrecondition if the executor holds something else than we, or than the executors that are up."""
        ours, theirs = self._settings.fingerprint, welcome.fingerprint
        differing = [
            name
            for name in ("model_digest", "tokenizer_digest", "processor_version", "vocab_size")
            if (a := getattr(ours, name)) != (b := getattr(theirs, name)) and (name == "model_digest" or (a and b))
        ]
        if differing:
            raise FailedPrecondition(f"frontend and executor differ in {', '.join(differing)}")
        facts = ModelFacts.of(welcome)
        for other in self._clients.values():
            if other is not client and other.welcome is not None and ModelFacts.of(other.welcome) != facts:
                raise FailedPrecondition(f"its model is not the one of executor {other.address}: {facts}")

    def state_changed(self, client: ExecutorClient) -> None:
        """Takes over the facts of an executor that became ready, and sends it what waits."""
        if client.ready:
            self._facts = ModelFacts.of(client.welcome)
            self._facts_known.set()
            waiting, self._waiting = self._waiting, {}
            for flight in waiting:
                self.launch(flight)
        if self.ready:
            self._max_num_seqs = sum(c.welcome.max_num_seqs for c in self._clients.values() if c.ready)
        if self.ready != self._was_ready:
            self._was_ready = self.ready
            self.on_change(self._was_ready)

    def flight_lost(self, flight: Flight, client: ExecutorClient, *, blamed: bool) -> None:
        """Sends a flight on whose executor was lost, unless it has seen too many die."""
        flight.losses += blamed
        if flight.losses >= MAX_LOSSES:
            self._fail(flight, _executor_lost("two executors were lost with this request"))
        elif client.ready and self.num_ready > 1:  # it is there, but served the request wrongly: another one first
            flight.refused_by.add(client)
            self.launch(flight)
        else:
            self.launch(flight)

    def flight_refused(self, flight: Flight, client: ExecutorClient, error: ForebayError) -> None:
        """Sends a flight on that found no room; any other refusal is the request's end."""
        if error.code not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
            self._fail(flight, error)
            return
        flight.refused_by.add(client)
        if any(other.ready and other not in flight.refused_by for other in self._clients.values()):
            self.launch(flight)
        elif error.code == "RESOURCE_EXHAUSTED" and not flight.started:
            self._fail(flight, error)
        else:
            self._wait(flight, error.retry_after_ms)

    def _try_again(self, flight: Flight) -> None:
        if flight in self._waiting:
            flight.refused_by.clear()
            del self._waiting[flight]
            self.launch(flight)

    def _wait(self, flight: Flight, pause_ms: int | None = None) -> None:
        """Keeps the flight until an executor becomes ready, or those that had no room have had a pause."""
        if flight.released:
            return
        self._waiting[flight] = None
        if flight.refused_by:
            pause_s = (pause_ms or REFUSED_PAUSE_MS) / 1000
            asyncio.get_running_loop().call_later(pause_s, self._try_again, flight)
        if flight.wait_until is None:
            flight.wait_until = time.monotonic() + self._wait_s
            asyncio.get_running_loop().call_later(self._wait_s, self._give_up, flight, flight.wait_until)
        elif time.monotonic() >= flight.wait_until:  # it was aboard, and not accepted, when its time was up
            self._give_up(flight, flight.wait_until)

    def _give_up(self, flight: Flight, wait_until: float) -> None:
        if flight.wait_until == wait_until and flight in self._waiting:
            del self._waiting[flight]
            lost = flight.losses or flight.started
            self._fail(flight, _executor_lost("no other executor could take over") if lost else _no_executor())

    def _fail(self, flight: Flight, error: ForebayError) -> None:
        flight.released = True
        flight.sink.fail(error)

    # The set of executors

    def _set_addresses(self, addresses: tuple[str, ...]) -> None:
        for address in addresses:
            client = self._clients.get(address)
            if client is None:
                client = self._clients[address] = ExecutorClient(address, self._settings, self)
                client.start()
            elif client.retired:
                client.retired = False
                self.state_changed(client)
        for address, client in list(self._clients.items()):
            if address not in addresses and not client.retired:
                client.retired = True
                self.state_changed(client)
                self._spawn(self._retire(client))

    async def _retire(self, client: ExecutorClient) -> None:
        """Lets an executor that left the address list finish what it has, then forgets it."""
        while client.retired and client.num_flights:
            await asyncio.sleep(0.2)
        if client.retired and self._clients.get(client.address) is client:  # else it was retired twice
            del self._clients[client.address]
            await client.close()

    def _spawn(self, work: object) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_task_end)

    def _note_task_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the dispatcher failed", exc_info=task.exception())


def _no_executor() -> Unavailable:
    return Unavailable(
        "no executor can be reached", ErrorReason.ERROR_REASON_NO_EXECUTOR, retry_after_ms=NO_EXECUTOR_RETRY_MS
    )


def _executor_lost(why: str) -> Unavailable:
    return Unavailable(
        f"the executor that ran this request was lost; {why}",
        ErrorReason.ERROR_REASON_EXECUTOR_LOST,
        retry_after_ms=NO_EXECUTOR_RETRY_MS,
    )
