"""Owns reading a checkpoint's settings of media: which file holds them, and keys with an error that names what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forebay.errors import CheckpointError
from preprocess.processors.processor import ProcessorFiles


class Settings:
    """An object of a JSON file. A key that is null counts as missing, as it does in the hub's files."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data, self.where = {key: value for key, value in data.items() if value is not None}, where

    def __call__(self, name: str, default: Any) -> Any:
        """The value of a key as it is."""
        return self.data.get(name, default)

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number from `least`; without a default it has to be there."""
        value = self.data.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(name, value, f"a whole number from {least}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.data.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def section(self, name: str) -> Settings:
        """The object below a key, empty if there is none."""
        value = self.data.get(name, {})
        if not isinstance(value, Mapping):
            raise self.wrong(name, value, "an object")
        return Settings(value, f"{name} of {self.where}")

    def wrong(self, name: str, value: Any, expected: str) -> CheckpointError:
        """The error for a value that cannot be."""
        return CheckpointError(f"{name} of {self.where} is {repr(value)[:100]}; it must be {expected}")


def model_settings(files: ProcessorFiles) -> Settings:
    """config.json."""
    return Settings(files.config, "config.json")


def image_settings(files: ProcessorFiles) -> Settings:
    """The image processor's: preprocessor_config.json, or a section of processor_config.json, as transformers 5 saves them."""
    return _settings(files, "image_processor", files.preprocessor, "preprocessor_config.json")


def video_settings(files: ProcessorFiles) -> Settings:
    """The video processor's: in a file or section of their own, or else the image processor's."""
    if files.video_preprocessor:
        return _settings(files, "video_processor", files.video_preprocessor, "video_preprocessor_config.json")
    return _settings(files, "video_processor", files.preprocessor, "preprocessor_config.json")


def audio_settings(files: ProcessorFiles) -> Settings:
    """The feature extractor's, in the places of the image processor's."""
    return _settings(files, "feature_extractor", files.preprocessor, "preprocessor_config.json")


def _settings(files: ProcessorFiles, section: str, flat: Mapping[str, Any], where: str) -> Settings:
    nested = Settings(files.processor, "processor_config.json").section(section)
    return nested if nested.data else Settings(flat, where)
