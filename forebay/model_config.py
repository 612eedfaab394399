"""Owns which file of a model folder says what model it is, config.json or mistral's params.json, and changes to what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG_FILES = ("config.json", "params.json")


def model_config_path(folder: Path) -> Path:
    """The file that says it; config.json where there is none."""
    paths = [folder / name for name in CONFIG_FILES]
    return next((path for path in paths if path.is_file()), paths[0])


def apply_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`--hf-overrides`: a config with some keys changed; an object is merged key by key."""
    merged = dict(config)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = apply_overrides(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
