"""Owns the frontend as a process: reads its settings and the model folder, serves until told to stop, then drains."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import uuid
from pathlib import Path

from forebay.cli.parser import VerbParser
from forebay.errors import EXIT_BAD_CONFIG, ForebayError
from forebay.executor.v1 import executor_pb2 as wire
from forebay.flags import ConfigError, add_flags, check_file_keys, describe_config, read_config
from forebay.logs import set_up_logging
from forebay.stop_signals import stop_on_signals
from frontend.config import FrontendConfig
from frontend.detokenizer import SequenceText
from frontend.model_catalogue import ServedModel
from frontend.sampling import resolve_sampling
from frontend.server import FrontendServer, session_settings
from preprocess.media.flags import media_settings
from preprocess.model_folder import ModelFolder

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
    found = ModelFolder.open(
        config.model,
        revision=config.revision,
        download_dir=config.download_dir,
        tokenizer=config.tokenizer,
        trust_remote_code=config.trust_remote_code,
        media=media_settings(config),
        hf_overrides=config.hf_overrides,
    )
    architectures = found.config.get("architectures") or [""]
    names = config.served_model_name or (found.folder.name if Path(config.model).is_dir() else config.model,)
    model = ServedModel(
        names=names,
        architecture=architectures[0],
        model_digest=found.fingerprint.model_digest,
        preprocessor=found.preprocessor,
    )
    return found.folder, model, found.fingerprint


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
