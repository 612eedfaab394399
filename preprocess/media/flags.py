"""Owns the flags of media, which frontends and preprocess services have alike."""

from __future__ import annotations

from typing import Any, Protocol

from forebay.flags import setting
from preprocess.media.fetch import UrlFetcher
from preprocess.media.limits import MediaLimits, parse_io, parse_items
from preprocess.media.settings import MediaSettings


class MediaFlags(Protocol):
    """The fields of a config that have them."""

    limit_mm_per_prompt: str
    allowed_media_domains: tuple[str, ...]
    media_io_kwargs: dict[str, Any] | None
    media_workers: int
    media_cache_bytes: int


def limit_setting() -> Any:
    """--limit-mm-per-prompt."""
    return setting(
        "",
        help="how many images, videos and clips of sound a prompt can have (default: image=16,video=4,audio=16)",
        metavar="image=N,video=N,audio=N",
    )


def domains_setting() -> Any:
    """--allowed-media-domains."""
    return setting(
        (),
        help="hosts that media is fetched from over https, NAME or *.NAME, comma-separated (default: none, so that clients "
        "send the bytes)",
        metavar="NAME,…",
    )


def io_setting() -> Any:
    """--media-io-kwargs."""
    return setting(
        None,
        help='what is taken of files, as JSON: {"video": {"num_frames": N}} is how many frames of a video (default: 32), -1 '
        "all, of videos that have at most 1,024",
        metavar="JSON",
    )


def workers_setting() -> Any:
    """--media-workers."""
    return setting(2, help="processes that decode images, videos and sound")


def cache_setting() -> Any:
    """--media-cache-bytes."""
    return setting(
        512 << 20,
        help="what is kept of media for requests that have it again: half for files, half for tensors",
        metavar="BYTES",
    )


def check_media_flags(config: MediaFlags) -> None:
    """Raises ValueError, naming the flag, for a value that cannot be."""
    for flag, parse, value in (
        ("--limit-mm-per-prompt", parse_items, config.limit_mm_per_prompt),
        ("--allowed-media-domains", UrlFetcher, config.allowed_media_domains),
        ("--media-io-kwargs", parse_io, config.media_io_kwargs or {}),
    ):
        try:
            parse(value)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
    for name, least in (("media_workers", 1), ("media_cache_bytes", 0)):
        value = getattr(config, name)
        if not least <= value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")


def media_settings(config: MediaFlags) -> MediaSettings:
    """How a server treats media; it is always decoded in processes of its own there."""
    return MediaSettings(
        MediaLimits(
            items=parse_items(config.limit_mm_per_prompt), sampled_frames=parse_io(config.media_io_kwargs or {})
        ),
        num_workers=config.media_workers,
        fetch=UrlFetcher(config.allowed_media_domains) if config.allowed_media_domains else None,
        item_cache_bytes=config.media_cache_bytes // 2,
        file_cache_bytes=config.media_cache_bytes // 2,
    )
