"""Owns reading config.json as data: keys by any of their names, with an error that names what is missing or wrong."""

from __future__ import annotations

from typing import Any

from forebay.errors import CheckpointError

_REQUIRED: Any = object()

# Activation names of configs, and ours. What transformers calls gelu_new, gelu_fast and gelu_accurate is the tanh form.
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh", "relu": "relu",
    "relu2": "relu2",
}  # fmt: skip


class ConfigReader:
    """An object of config.json. Nothing in it is ever executed, and keys that nobody asks for have no effect.

    A key that is null counts as missing, as it does in the hub's files; `has` tells them apart.
    """

    def __init__(
        self,
        data: dict[str, Any],
        max_model_len: int | None = None,
        where: str = "config.json",
        task: str = "generate",
    ) -> None:
        self.data = data
        self.task = task  # what the model is to do, where the same checkpoint reads differently for it
        self.max_model_len = max_model_len  # what the operator asks for, if anything
        self.where = where

    def __call__(self, *names: str, default: Any = _REQUIRED) -> Any:
        """The value of the first of `names` that is there and not null."""
        for name in names:
            value = self.data.get(name)
            if value is not None:
                return value
        if default is _REQUIRED:
            raise CheckpointError(f"{self.where} has no {' or '.join(names)}")
        return default

    def has(self, name: str) -> bool:
        """Whether the key is there, be it null."""
        return name in self.data

    def with_defaults(self, **values: Any) -> ConfigReader:
        """The same config with these values for keys that are missing or null."""
        return self.updated({key: value for key, value in values.items() if self.data.get(key) is None})

    def updated(self, values: dict[str, Any]) -> ConfigReader:
        """The same config with other values, or under other names; None leaves a key as it is."""
        changes = {name: value for name, value in values.items() if value is not None}
        return ConfigReader(self.data | changes, self.max_model_len, self.where, self.task)

    def for_task(self, task: str) -> ConfigReader:
        """The same config, read for a task."""
        return ConfigReader(self.data, self.max_model_len, self.where, task)

    def integer(self, *names: str, default: Any = _REQUIRED) -> Any:
        """A whole number above 0, or the default as it is."""
        value = self(*names, default=default)
        if value is not default and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise self.wrong(names, value, "a whole number above 0")
        return value

    def number(self, *names: str, default: Any = _REQUIRED) -> Any:
        """A number above 0, or the default as it is."""
        value = self(*names, default=default)
        if value is default:
            return value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self.wrong(names, value, "a number above 0")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        """true or false."""
        value = self(*names, default=default)
        if not isinstance(value, bool):
            raise self.wrong(names, value, "true or false")
        return value

    def section(self, *names: str) -> ConfigReader:
        """The object below a key, empty if there is none."""
        value = self(*names, default={})
        if not isinstance(value, dict):
            raise self.wrong(names, value, "an object")
        return ConfigReader(value, self.max_model_len, f"{names[0]} of {self.where}", self.task)

    def activation(self, *names: str, default: str) -> str:
        """The activation that a key names, by our name for it."""
        value = self(*names, default=default)
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise self.wrong(names, value, f"one of {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def head_dim(self, size: str, heads: str) -> int:
        """The size of a head where its heads share the hidden size evenly; `size` and `heads` are the keys."""
        hidden_size, num_heads = self.integer(size, "hidden_size"), self.integer(heads, "num_attention_heads")
        if hidden_size % num_heads:
            raise self.wrong((size, "hidden_size"), hidden_size, f"a multiple of its {num_heads} heads")
        return hidden_size // num_heads

    @property
    def architectures(self) -> list[str]:
        """The names in `architectures`, at least one."""
        names = self("architectures")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise self.wrong(("architectures",), names, "a list of names")
        return names

    def context(self, default: int, most: int | None = None) -> int:
        """Tokens at once: what the operator asks for, up to `most` (default: `default`), or else `default`."""
        most = most or default
        if self.max_model_len is not None and self.max_model_len > most:
            raise CheckpointError(
                f"max_model_len is {self.max_model_len:,}; this model takes {most:,}. Lower it, or change the model's own "
                "limit or its rope scaling with --hf-overrides"
            )
        return self.max_model_len or default

    def wrong(self, names: tuple[str, ...], value: Any, expected: str) -> CheckpointError:
        """The error for a value that cannot be."""
        name = next((name for name in names if name in self.data), names[0])
        return CheckpointError(f"{name} of {self.where} is {repr(value)[:100]}; it must be {expected}")
