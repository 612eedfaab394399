"""Owns the frontend's settings: what they mean, their defaults and what values they can have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from forebay.flags import setting
from frontend.resolver import parse_executors
from preprocess.media.flags import (
    cache_setting,
    check_media_flags,
    domains_setting,
    io_setting,
    limit_setting,
    workers_setting,
)

MODEL_NAME = re.compile(r"[A-Za-z0-9._/:@-]{1,256}")


@dataclass(frozen=True, slots=True)
class FrontendConfig:
    """The settings of one frontend process. Raises ValueError, naming the flag, for a value that cannot be."""

    model: str = setting(help="model folder, or a name on the Hugging Face hub", positional=True, metavar="MODEL")
    executors: str = setting(
        help="where the executors are: host:port,… or dns:///name:port, whose addresses are looked up again and again",
        metavar="HOST:PORT,…",
    )
    host: str = setting("127.0.0.1", help="address to listen on", metavar="ADDRESS")
    port: int = setting(50051, help="port to listen on; 0 takes a free one", metavar="PORT")
    served_model_name: tuple[str, ...] = setting(
        (), help="names that clients may ask for, comma-separated (default: the model's own name)", metavar="NAME,…"
    )
    tokenizer: str | None = setting(None, help="folder or hub name of the tokenizer, if it is not with the model")
    trust_remote_code: bool = setting(
        False,
        help="accepted for checkpoints that elsewhere need it; code of a checkpoint is never run, so that a tokenizer "
        "which only its own code reads is refused with NOT_OFFERED",
    )
    revision: str | None = setting(None, help="branch, tag or commit on the hub", metavar="REV")
    download_dir: str | None = setting(
        None, help="where downloads are kept (default: the hub's own cache)", metavar="DIR"
    )
    hf_overrides: dict[str, Any] | None = setting(
        None, help="changes to config.json, as JSON; every tier of a model needs the same"
    )

    max_concurrent_requests: int = setting(1024, help="requests that are with the executors at once; more of them wait")
    max_queue_size: int = setting(
        1024, help="requests that wait in the frontend; more are refused with RESOURCE_EXHAUSTED"
    )
    max_concurrent_streams: int = setting(1024, help="calls at once on one client connection")
    max_message_bytes: int = setting(
        64 << 20, help="size of a message from or to a client; pictures and sound come in them", metavar="BYTES"
    )
    max_unsent_bytes: int = setting(
        1 << 20, help="output kept for a client that does not read; more ends its call", metavar="BYTES"
    )
    preprocess_threads: int = setting(2, help="threads that tokenize, render chats and make tensors of media")

    limit_mm_per_prompt: str = limit_setting()
    allowed_media_domains: tuple[str, ...] = domains_setting()
    media_io_kwargs: dict[str, Any] | None = io_setting()
    media_workers: int = workers_setting()
    media_cache_bytes: int = cache_setting()
    preprocessors: str = setting(
        "",
        help="preprocess services that encode prompts with media: host:port,… or dns:///name:port (default: this process)",
        metavar="HOST:PORT,…",
    )
    max_concurrent_encodes: int = setting(
        32, help="prompts that are with preprocess services at once; more of them wait"
    )
    preprocess_timeout_s: float = setting(
        60.0, help="how long a preprocess service may take for a prompt", metavar="SECONDS"
    )

    default_timeout_s: float = setting(
        3600.0, help="longest that a request may take, whatever deadline its client sets", metavar="SECONDS"
    )
    drain_grace_s: float = setting(30.0, help="how long running requests may go on after SIGTERM", metavar="SECONDS")
    executor_connect_timeout_s: float = setting(
        5.0, help="how long an executor may take to answer the opening of a session", metavar="SECONDS"
    )
    executor_wait_s: float = setting(
        10.0, help="how long a request waits for an executor when there is none, or its own was lost", metavar="SECONDS"
    )
    executor_stall_s: float = setting(
        120.0,
        help="how long an executor may hold requests without progress before they move to another one; 0: for ever",
        metavar="SECONDS",
    )
    dns_refresh_s: float = setting(5.0, help="how often dns:/// names are looked up", metavar="SECONDS")

    log_level: str = setting("info", help="what is logged", choices=("debug", "info", "warning", "error"))
    log_format: str = setting("text", help="how a log line is written", choices=("text", "json"))

    def __post_init__(self) -> None:
        parse_executors(self.executors)
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port is {self.port}; a port is 0 to 65535")
        for name in (
            "max_concurrent_requests",
            "max_concurrent_streams",
            "max_unsent_bytes",
            "preprocess_threads",
            "max_concurrent_encodes",
        ):
            self._check_at_least(name, 1)
        check_media_flags(self)
        if self.preprocessors:
            parse_executors(self.preprocessors, flag="--preprocessors")
        self._check_at_least("max_queue_size", 0)
        self._check_at_least("max_message_bytes", 1024)
        for name in ("drain_grace_s", "executor_wait_s", "executor_stall_s"):
            self._check_at_least(name, 0)
        for name in ("default_timeout_s", "executor_connect_timeout_s", "dns_refresh_s", "preprocess_timeout_s"):
            self._check_at_least(name, 0.001)
        for name in self.served_model_name:
            if not MODEL_NAME.fullmatch(name):
                raise ValueError(f"--served-model-name {name!r}: letters, digits and . _ / : @ - only, at most 256")

    def _check_at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not least <= value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least:g}")
