"""Owns which file of a model folder says what model it is: config.json, or params.json in mistral's own format."""

from __future__ import annotations

from pathlib import Path

CONFIG_FILES = ("config.json", "params.json")


def model_config_path(folder: Path) -> Path:
    """The file that says it; config.json where there is none."""
    paths = [folder / name for name in CONFIG_FILES]
    return next((path for path in paths if path.is_file()), paths[0])
