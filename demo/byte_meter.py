"""Owns what the image demo counts: a relay between two addresses that knows how many bytes went through it each way."""

from __future__ import annotations

import contextlib
import socket
import threading


class ByteMeter:
    """Relays connections to `target`, host:port, from a port of its own; `there` and `back` are the bytes so far.

    Its threads end with their connections, or with the process.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self.there = self.back = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection(self._target)
            except OSError:  # not there yet: who connects tries again
                near.close()
                continue
            for source, sink, name in ((near, far, "there"), (far, near, "back")):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pump, args=(source, sink, name), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):  # either end has gone, and both are told
            while data := source.recv(1 << 16):
                setattr(self, name, getattr(self, name) + len(data))
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
