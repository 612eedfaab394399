"""Owns the processes that decode files, so that what one file does to its decoder happens to no other request."""

from __future__ import annotations

import atexit
import dataclasses
import queue
import threading
from collections.abc import Mapping

from forebay.errors import InvalidRequest
from forebay.v1.errors_pb2 import ErrorReason
from preprocess.media.decoded import DecodedMedia
from preprocess.media.decoded_codec import unpack
from preprocess.media.limits import MediaLimits, undecodable
from preprocess.media.worker_process import WorkerDied, WorkerProcess

# Of computing for one file; usual pictures take 0.1 s, and 32 frames of a video seconds.
CPU_SECONDS = {"image": 10.0, "audio": 30.0, "video": 60.0}
WALL_FACTOR = 4.0  # how much longer it may take on a machine that is busy
MEMORY_BYTES = 3 << 30  # of one process, beyond what it starts with

_REASONS = {
    ErrorReason.ERROR_REASON_MEDIA_DECODE,
    ErrorReason.ERROR_REASON_MEDIA_TOO_LARGE,
    ErrorReason.ERROR_REASON_MEDIA_UNUSABLE,
}


class DecoderPool:
    """Decodes as preprocess.media.decoder.decode does, in `num_workers` processes. Threads may share one, and wait for one."""

    def __init__(
        self,
        num_workers: int,
        limits: MediaLimits,
        *,
        cpu_seconds: Mapping[str, float] = CPU_SECONDS,
        wall_factor: float = WALL_FACTOR,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._limits, self._cpu_seconds, self._wall_factor = limits, dict(cpu_seconds), wall_factor
        self._settings = {
            "limits": dataclasses.asdict(limits), "cpu_seconds": self._cpu_seconds, "memory_bytes": memory_bytes,
        }  # fmt: skip
        self._lock, self._closed = threading.Lock(), False
        self._workers: set[WorkerProcess] = set()
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        for _ in range(num_workers):  # without waiting for them: they are up when the first file comes
            self._idle.put(self._start())
        atexit.register(self.close)

    @property
    def pids(self) -> set[int]:
        """The processes' numbers."""
        with self._lock:
            return {worker.pid for worker in self._workers}

    def decode(self, data: bytes, modality: str, limits: MediaLimits, sample_rate: int | None) -> DecodedMedia:
        """See preprocess.media.decoder.decode; a process that breaks down is MEDIA_DECODE too, and another takes its place."""
        limits.check_file(len(data))
        worker = self._idle.get()
        try:
            if not worker.alive:
                worker = self._replace(worker)
            request = {"modality": modality, "sample_rate": sample_rate}
            wall_seconds = self._cpu_seconds[modality] * self._wall_factor
            answer, body = worker.ask(request, data, wall_seconds=wall_seconds)
        except WorkerDied as error:
            worker = self._replace(worker)
            raise undecodable(f"the file cannot be decoded: its decoder {error.cause}") from None
        finally:
            self._idle.put(worker)
        if "header" not in answer:
            raise _refusal(answer)
        try:
            return unpack(answer["header"], body, modality, self._limits)
        except (ValueError, KeyError, TypeError):
            raise undecodable("the file cannot be decoded: its decoder broke down") from None

    def close(self) -> None:
        """Ends the processes; nothing can be decoded after this."""
        with self._lock:
            self._closed = True
            workers, self._workers = self._workers, set()
        for worker in workers:
            worker.kill()

    def _start(self) -> WorkerProcess:
        with self._lock:
            if self._closed:
                raise RuntimeError("this pool was closed")
            worker = WorkerProcess(self._settings)
            self._workers.add(worker)
            return worker

    def _replace(self, worker: WorkerProcess) -> WorkerProcess:
        with self._lock:
            self._workers.discard(worker)
        worker.kill()
        return self._start()


def _refusal(answer: dict[str, object]) -> InvalidRequest:
    """What a worker refused a file with, if it can be that."""
    reason, message = answer.get("reason"), answer.get("message")
    if reason not in _REASONS or not isinstance(message, str):
        return undecodable("the file cannot be decoded: its decoder broke down")
    return InvalidRequest("".join(c if c.isprintable() else " " for c in message)[:300], reason)
