"""Owns how JSON files of a checkpoint are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forebay.errors import CheckpointError
from forebay.model_config import apply_overrides, model_config_path


def read_model_config(folder: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """config.json of a checkpoint, or params.json, with `--hf-overrides` merged in; empty if there is none."""
    return apply_overrides(read_json(model_config_path(folder)), overrides or {})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the checkpoint; empty if there is no such file."""
    data = read_json_value(path)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} of the checkpoint is not a JSON object")
    return data


def read_json_value(path: Path) -> Any:
    """What a JSON file of the checkpoint holds; None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} of the checkpoint cannot be read: {error}") from error
