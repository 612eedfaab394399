"""Owns --image, --video and --audio of the client's verbs: which media goes with a prompt, out of files or from URLs."""

from __future__ import annotations

import argparse
from pathlib import Path

from forebay.client_media import KINDS, one_media
from forebay.flags import ConfigError
from forebay.v1.media_pb2 import Media

# Each item with its modality, in the order of the command line.
MediaItems = list[tuple[str, Media]]


def add_media_flags(parser: argparse.ArgumentParser, goes_with: str) -> None:
    """One flag per modality, which may be repeated; `goes_with` completes the sentence "the files go with …"."""
    group = parser.add_argument_group(
        "media", f"Files, or https: URLs for the server to fetch, that go with {goes_with}."
    )
    for modality in KINDS:
        group.add_argument(
            f"--{modality}", dest="media", action="append", default=[], metavar="PATH",
            type=lambda path, modality=modality: (modality, path), help=f"{modality} to send; may be repeated",
        )  # fmt: skip


def read_media(arguments: argparse.Namespace) -> MediaItems:
    """What the flags name, read; raises ConfigError for a file that cannot be."""
    return [(modality, _read(modality, path)) for modality, path in arguments.media]


def beside(media: MediaItems) -> dict[str, dict[str, list[Media]]]:
    """What a dictionary prompt has beside its text or ids, {"multi_modal_data": …}; nothing without media."""
    data: dict[str, list[Media]] = {}
    for modality, item in media:
        data.setdefault(modality, []).append(item)
    return {"multi_modal_data": data} if data else {}


def parts(media: MediaItems) -> list[dict[str, object]]:
    """The content parts of a chat message."""
    return [{"type": modality, modality: item} for modality, item in media]


def _read(modality: str, path: str) -> Media:
    if path.startswith("https://"):
        return one_media(modality, path, f"--{modality}")
    try:
        return one_media(modality, Path(path), f"--{modality}")
    except OSError as error:
        raise ConfigError(f"--{modality} {path}: {error.strerror}") from error
