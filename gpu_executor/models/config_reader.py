"""Owns reading config.json as data: keys by any of their names, with an error that names what is missing."""

from __future__ import annotations

from typing import Any

from forebay.errors import CheckpointError

_REQUIRED = object()


class ConfigReader:
    """A config.json. Nothing in it is ever executed, and keys that nobody asks for have no effect."""

    def __init__(self, data: dict[str, Any], max_model_len: int | None = None) -> None:
        self.data = data
        self.max_model_len = max_model_len  # what the operator asks for, if anything

    def __call__(self, *names: str, default: Any = _REQUIRED) -> Any:
        """The value of the first of `names` that is there and not null."""
        for name in names:
            value = self.data.get(name)
            if value is not None:
                return value
        if default is _REQUIRED:
            raise CheckpointError(f"config.json has no {' or '.join(names)}")
        return default

    def integer(self, *names: str, default: Any = _REQUIRED) -> int:
        """A whole number above 0."""
        value = self(*names, default=default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{names[0]} of config.json is {value!r}; it must be a whole number above 0")
        return value

    @property
    def architecture(self) -> str:
        """The first of `architectures`."""
        names = self("architectures")
        if not isinstance(names, list) or not names or not isinstance(names[0], str):
            raise CheckpointError(f"architectures of config.json is {names!r}; it must be a list of names")
        return names[0]

    def context(self, *names: str) -> int:
        """Most tokens at once: what the model was made for, or less if the operator asks for less."""
        made_for = self.integer(*names)
        if self.max_model_len is not None and self.max_model_len > made_for:
            raise CheckpointError(
                f"max_model_len is {self.max_model_len:,}; this model takes {made_for:,} ({names[0]} of config.json). "
                "Lower it, or change the model's own limit or rope scaling with --hf-overrides"
            )
        return self.max_model_len or made_for


def apply_overrides(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`--hf-overrides`: a config with some keys changed; an object is merged key by key."""
    merged = dict(config)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = apply_overrides(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
