"""Owns the verb `preprocess`: the tier of its own that makes tensors of media, with the model's tower where that is asked for."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from forebay.cli.parser import VerbParser
from forebay.errors import EXIT_BAD_CONFIG, ForebayError
from forebay.flags import ConfigError, add_flags, check_file_keys, describe_config, read_config
from forebay.logs import set_up_logging
from forebay.stop_signals import stop_on_signals
from preprocess.config import PreprocessConfig
from preprocess.media.flags import media_settings
from preprocess.model_folder import ModelFolder
from preprocess.service import EncodeMedia, PreprocessServer, PreprocessServicer
from preprocess.threads import PreprocessThreads

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Makes token ids and tensors of prompts with media, for frontends that are started with --preprocessors. It is scaled on its
own; frontends then decode no media. With --encode-media the model's tower runs here too, and executors get rows of
embeddings instead of pixels.

  forebay preprocess MODEL --listen 0.0.0.0:50071
  forebay frontend MODEL --executors executor:50061 --preprocessors dns:///preprocess.default.svc:50071

Every setting is also an environment variable (FOREBAY_MEDIA_WORKERS) and a key of the file given with --config.
SIGTERM drains; a second one exits at once."""


async def run(config: PreprocessConfig) -> None:
    """Serves until a signal comes, then drains. Raises ForebayError or OSError if it cannot begin."""
    stop = asyncio.Event()
    stop_on_signals(asyncio.get_running_loop(), stop)
    model = ModelFolder.open(
        config.model,
        revision=config.revision,
        download_dir=config.download_dir,
        tokenizer=config.tokenizer,
        trust_remote_code=config.trust_remote_code,
        media=media_settings(config),
        hf_overrides=config.hf_overrides,
    )
    threads = PreprocessThreads(
        model.preprocessor, 1, config.max_queue_size, num_media_threads=config.preprocess_threads
    )
    servicer = PreprocessServicer(threads, model.fingerprint, _tower(config))
    server = PreprocessServer(config, servicer)
    port = await server.start()
    logger.info("ready on %s:%d, from %s", config.listen.rpartition(":")[0], port, model.folder)
    try:
        await stop.wait()
        await server.drain(config.drain_grace_s)
    finally:
        await server.stop()
        threads.close()


def _tower(config: PreprocessConfig) -> EncodeMedia | None:
    """What makes rows of a prompt's media, if it is to run here; it brings torch with it."""
    if not config.encode_media:
        return None
    from forebay.hub import resolve_model
    from gpu_executor.tower_runner import TowerRunner

    folder = resolve_model(config.model, revision=config.revision, download_dir=config.download_dir, weights=True)
    tower = TowerRunner.load(
        Path(folder), dtype=config.dtype, device=config.device, num_threads=config.num_threads, hf_overrides=config.hf_overrides,
        download_dir=config.download_dir,
    )  # fmt: skip
    return tower.encode_prompt


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = VerbParser("preprocess", DESCRIPTION)
    add_flags(parser, PreprocessConfig)
    parsed = parser.parse_args(arguments)
    try:
        check_file_keys(parsed, PreprocessConfig)
        config = read_config(PreprocessConfig, parsed)
        set_up_logging(config.log_level, config.log_format)
        logger.info("settings: %s", describe_config(config))
        asyncio.run(run(config))
    except (ConfigError, ForebayError, OSError) as error:
        print(f"forebay preprocess: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
