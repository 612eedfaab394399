"""Runs an executor: reads the config, loads the model, serves frontends until SIGTERM, then drains."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence

from forebay.errors import EXIT_BAD_CONFIG, ForebayError
from forebay.flags import ConfigError, add_flags, check_file_keys, describe_config, read_config
from gpu_executor.config import ExecutorConfig

logger = logging.getLogger(__name__)

DESCRIPTION = "The GPU tier: holds a model's weights and runs continuous batching for frontends. It never sees text."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the executor's flags."""
    add_flags(parser, ExecutorConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 after a drain, 78 for settings or a checkpoint that cannot work, 1 for anything else."""
    parser = argparse.ArgumentParser(prog="forebay executor", description=DESCRIPTION)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        check_file_keys(arguments, ExecutorConfig)
        config = read_config(ExecutorConfig, arguments)
    except ConfigError as error:
        print(f"forebay executor: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIG
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(levelname)s %(asctime)s [%(name)s] %(message)s",
        datefmt="%m-%d %H:%M:%S",
    )
    return asyncio.run(run(config))


async def run(config: ExecutorConfig) -> int:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once."""
    from gpu_executor.service import ExecutorServer  # torch is imported when the flags are known to be right
    from gpu_executor.startup import build_engine

    logger.info("executor settings: %s", describe_config(config))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stop)
    stopped = asyncio.ensure_future(stop.wait())
    server = ExecutorServer(config)
    try:
        await server.listen()
    except RuntimeError as error:
        print(f"forebay executor: cannot listen on {config.listen}: {error}", file=sys.stderr)
        return 1
    try:
        building = asyncio.ensure_future(asyncio.to_thread(build_engine, config))
        await asyncio.wait((building, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not building.done():
            logger.info("stopped while loading")
            logging.shutdown()
            os._exit(0)  # nothing is served yet, and the loading thread cannot be interrupted
        engine, info = building.result()
    except (ForebayError, ValueError) as error:
        print(f"forebay executor: {error}", file=sys.stderr)
        await server.drain(0)  # a server that is merely forgotten may crash the interpreter on its way out
        return EXIT_BAD_CONFIG
    servicer = await server.serve(engine, info)
    host = config.listen.rpartition(":")[0]
    logger.info(
        "ready: %s, %s tokens of context, on %s:%d", info.architecture, f"{info.max_model_len:,}", host, server.port
    )
    died = asyncio.ensure_future(servicer.died.wait())
    await asyncio.wait((died, stopped), return_when=asyncio.FIRST_COMPLETED)
    with contextlib.suppress(asyncio.CancelledError):
        await server.drain(0 if died.done() else config.drain_grace_s)
    return 1 if died.done() else 0


def _on_signal(stop: asyncio.Event) -> None:
    if stop.is_set():
        logger.warning("second signal: ending at once")
        logging.shutdown()
        os._exit(1)
    logger.info("draining: running requests finish, new ones are refused")
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
