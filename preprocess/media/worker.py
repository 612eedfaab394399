"""Owns the process in which files are decoded: one request after the other on stdin, one answer each on stdout.

Decoders of pictures, sound and videos are large, old and written in C: what they crash on, fill the memory with or never
come back from ends this process, and no other. The kernel enforces the limits: SIGPROF after a time of computing,
RLIMIT_AS on memory, RLIMIT_FSIZE on files, of which none can be written, and, where processes may have namespaces of their
own, no network. The parent is worker_process.py.

A request is a line of JSON and the file's bytes, an answer a line of JSON and the bytes of decoded_codec.pack.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import signal
import sys
import warnings

from forebay.errors import InvalidRequest
from preprocess.media.decoded_codec import pack
from preprocess.media.decoder import decode
from preprocess.media.limits import MediaLimits

_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000  # linux/sched.h


def main() -> None:
    """Serves until stdin ends. The only argument is JSON: the limits, seconds of computing by modality, bytes of memory."""
    settings = json.loads(sys.argv[1])
    limits = MediaLimits(**settings["limits"])
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not become an answer
    warnings.simplefilter("ignore")  # of decoders, about files of strangers
    _load_decoders()
    _leave_network()
    _limit(settings["memory_bytes"])
    answers.write(b"{}\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        data = requests.read(request["num_bytes"])
        signal.setitimer(signal.ITIMER_PROF, settings["cpu_seconds"][request["modality"]])
        try:
            header, body = pack(decode(data, request["modality"], limits, request["sample_rate"]))
            answer = {"header": header, "num_bytes": len(body)}
        except InvalidRequest as error:
            answer, body = {"reason": error.reason, "message": error.message, "num_bytes": 0}, b""
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(body)
        answers.flush()
        del data, body  # not to be held while nothing is asked


def _leave_network() -> None:
    """Moves into a network of its own, which has nobody in it; without the right to do so, nothing changes."""
    with contextlib.suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _load_decoders() -> None:
    """Imports what decoders import when first used, before memory is limited and files are strangers'."""
    import av
    import soundfile  # noqa: F401
    import soxr  # noqa: F401
    from PIL import AvifImagePlugin, Image

    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # whose check our own limits replace
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # see containers.stream_of
    av.logging.set_level(None)


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(OSError):  # no /proc: then only time and the limits of media hold
        with open("/proc/self/statm", encoding="ascii") as file:
            now_bytes = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now_bytes + memory_bytes, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
