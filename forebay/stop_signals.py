"""Owns how a server is told to stop: the first SIGTERM or SIGINT lets it drain, the second ends the process at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

logger = logging.getLogger(__name__)


def stop_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """Sets `stop` at the first SIGTERM or SIGINT; the second one ends the process at once."""

    def received(number: int) -> None:
        if stop.is_set():
            logging.shutdown()
            os._exit(128 + number)
        logger.info("%s received", signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received, number)
