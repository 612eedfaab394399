"""Owns checkpoints in several repositories: config.json names those of the parts that are as their makers left them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forebay.errors import CheckpointError
from forebay.hub import resolve_model

# The key that names a repository, and the section that its config.json is.
_SECTIONS = {"text_model_id": "text_config", "audio_model_id": "audio_config"}


def find_parts(
    config: Mapping[str, Any], *, download_dir: str | None = None, weights: bool = True, progress: bool = True
) -> dict[str, Path]:
    """By section, the folder of each part that lies in a repository of its own, downloaded if need be; see resolve_model."""
    return {
        section: resolve_model(config[key], download_dir=download_dir, weights=weights, progress=progress)
        for key, section in _SECTIONS.items()
        if isinstance(config.get(key), str) and config[key]
    }


def with_parts(config: dict[str, Any], parts: Mapping[str, Path]) -> dict[str, Any]:
    """The config with each part's own in its section; what stands in the section already wins."""
    return config | {section: _config_of(folder) | (config.get(section) or {}) for section, folder in parts.items()}


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder.name} has no config.json: is it a model?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"config.json of {folder.name} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"config.json of {folder.name} is not a JSON object")
    return config
