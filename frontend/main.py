"""Owns the frontend as a process: reads its settings and the model folder, serves until told to stop, then drains."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import uuid
from pathlib import Path

from forebay.cli.parser import VerbParser
from forebay.errors import EXIT_BAD_CONFIG, ForebayError
from forebay.executor.v1 import executor_pb2 as wire
from forebay.fingerprint import PROCESSOR_VERSION, model_digest, tokenizer_digest
from forebay.flags import ConfigError, add_flags, check_file_keys, describe_config, read_config
from forebay.hub import resolve_model
from forebay.model_config import model_config_path
from frontend.config import FrontendConfig
from frontend.detokenizer import SequenceText
from frontend.logs import set_up_logging
from frontend.model_catalogue import ServedModel
from frontend.sampling import resolve_sampling
from frontend.server import FrontendServer, session_settings
from preprocess.media.fetch import UrlFetcher
from preprocess.media.limits import MediaLimits, parse_items
from preprocess.media.settings import MediaSettings
from preprocess.preprocessor import Preprocessor

logger = logging.getLogger(__name__)

DESCRIPTION = """\
The CPU tier of Forebay: takes text, chat and token ids over gRPC, tokenizes them, and has executors generate. Executors
can also be found by a name that is looked up again and again, as of a headless service in Kubernetes:

  forebay frontend MODEL --executors dns:///executors.default.svc:50061 --host 0.0.0.0

Every setting is also an environment variable (FOREBAY_MAX_QUEUE_SIZE) and a key of the file given with --config.
SIGTERM drains: what runs finishes within --drain-grace-s, what is new is refused; a second SIGTERM exits at once."""


async def run(config: FrontendConfig, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then drains. Raises ForebayError or OSError if it cannot begin."""
    folder, model, fingerprint = load_model_folder(config)
    settings = session_settings(config, f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"[-128:], fingerprint)
    server = FrontendServer(config, model, settings, resolve_sampling=resolve_sampling, make_text=SequenceText)
    port = await server.start()
    logger.info("ready on %s:%d: %s from %s", config.host, port, ", ".join(model.names), folder)
    try:
        await stop.wait()
        await server.drain(config.drain_grace_s)
    finally:
        await server.stop()


def load_model_folder(config: FrontendConfig) -> tuple[Path, ServedModel, wire.Fingerprint]:
    """The model's folder, what is served of it, and what executors must have too; raises ForebayError."""
    folder = resolve_model(config.model, revision=config.revision, download_dir=config.download_dir, weights=False)
    tokenizer_folder = None
    if config.tokenizer:
        tokenizer_folder = resolve_model(
            config.tokenizer, revision=config.revision, download_dir=config.download_dir, weights=False
        )
    preprocessor = Preprocessor.load(
        folder,
        tokenizer_folder=tokenizer_folder,
        trust_remote_code=config.trust_remote_code,
        media=media_settings(config),
    )
    architecture_config = json.loads(model_config_path(folder).read_text(encoding="utf-8"))
    architectures = architecture_config.get("architectures") or [""]
    names = config.served_model_name or (folder.name if Path(config.model).is_dir() else config.model,)
    digest = model_digest(architecture_config)
    model = ServedModel(names=names, architecture=architectures[0], model_digest=digest, preprocessor=preprocessor)
    fingerprint = wire.Fingerprint(
        model_digest=digest,
        # A tokenizer from elsewhere is a choice of the operator: executors, which never see it, hold the model's own.
        tokenizer_digest="" if tokenizer_folder else tokenizer_digest(folder),
        processor_version=PROCESSOR_VERSION,
    )
    return folder, model, fingerprint


def media_settings(config: FrontendConfig) -> MediaSettings:
    """How media is treated; it is always decoded in processes of its own here."""
    return MediaSettings(
        MediaLimits(items=parse_items(config.limit_mm_per_prompt)),
        num_workers=config.media_workers,
        fetch=UrlFetcher(config.allowed_media_domains) if config.allowed_media_domains else None,
        item_cache_bytes=config.media_cache_bytes // 2,
        file_cache_bytes=config.media_cache_bytes // 2,
    )


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


async def serve(config: FrontendConfig) -> None:
    """`run` until a signal comes."""
    stop = asyncio.Event()
    stop_on_signals(asyncio.get_running_loop(), stop)
    await run(config, stop)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = VerbParser("frontend", DESCRIPTION)
    add_flags(parser, FrontendConfig)
    parsed = parser.parse_args(arguments)
    try:
        check_file_keys(parsed, FrontendConfig)
        config = read_config(FrontendConfig, parsed)
        set_up_logging(config.log_level, config.log_format)
        logger.info("settings: %s", describe_config(config))
        asyncio.run(serve(config))
    except (ConfigError, ForebayError, OSError) as error:
        print(f"forebay frontend: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
