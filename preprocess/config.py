"""Owns the settings of a preprocess service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forebay.flags import setting
from preprocess.media.flags import (
    cache_setting,
    check_media_flags,
    domains_setting,
    io_setting,
    limit_setting,
    workers_setting,
)


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """The settings of one process. Raises ValueError, naming the flag, for a value that cannot be."""

    model: str = setting(help="model folder, or a name on the Hugging Face hub", positional=True, metavar="MODEL")
    listen: str = setting(
        "127.0.0.1:50071", help="host:port to serve frontends on; port 0 takes a free one", metavar="HOST:PORT"
    )
    tokenizer: str | None = setting(None, help="folder or hub name of the tokenizer, if it is not with the model")
    trust_remote_code: bool = setting(
        False, help="accepted for checkpoints that elsewhere need it; code of a checkpoint is never run"
    )
    revision: str | None = setting(None, help="branch, tag or commit on the hub", metavar="REV")
    download_dir: str | None = setting(
        None, help="where downloads are kept (default: the hub's own cache)", metavar="DIR"
    )
    hf_overrides: dict[str, Any] | None = setting(
        None, help="changes to config.json, as JSON; every tier of a model needs the same"
    )
    encode_media: bool = setting(
        False, help="run the model's tower here as well and send rows of embeddings: needs torch, and the weights"
    )
    dtype: str = setting(
        "auto",
        help="number format of the tower; auto follows the checkpoint",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = setting("auto", help="where the tower runs", choices=("auto", "cpu", "cuda"))
    num_threads: int | None = setting(None, help="CPU threads of the tower (default: one per core)")

    preprocess_threads: int = setting(
        8, help="prompts that are encoded at once; most of their time they wait for decoders"
    )
    max_queue_size: int = setting(64, help="prompts that wait; more are refused with RESOURCE_EXHAUSTED")
    max_message_bytes: int = setting(64 << 20, help="size of a message from or to a frontend", metavar="BYTES")
    limit_mm_per_prompt: str = limit_setting()
    allowed_media_domains: tuple[str, ...] = domains_setting()
    media_io_kwargs: dict[str, Any] | None = io_setting()
    media_workers: int = workers_setting()
    media_cache_bytes: int = cache_setting()

    drain_grace_s: float = setting(30.0, help="how long prompts may be encoded after SIGTERM", metavar="SECONDS")
    log_level: str = setting("info", help="what is logged", choices=("debug", "info", "warning", "error"))
    log_format: str = setting("text", help="how a log line is written", choices=("text", "json"))

    def __post_init__(self) -> None:
        check_media_flags(self)
        if ":" not in self.listen:
            raise ValueError(f"--listen is {self.listen!r}; expected host:port")
        for name, least in (("preprocess_threads", 1), ("max_queue_size", 0), ("max_message_bytes", 4 << 20)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if self.drain_grace_s < 0:
            raise ValueError(f"--drain-grace-s is {self.drain_grace_s}; it must not be negative")
