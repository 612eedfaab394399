"""Turns the fields of a Config dataclass into command-line flags, environment variables and YAML keys.

A field is declared once: `max_model_len: int | None = setting(None, help="…")`. It can then be given as
`--max-model-len`, as `FOREBAY_MAX_MODEL_LEN` or as `max_model_len`/`max-model-len` in the file of `--config`;
the command line wins over the file, and the file over the environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml

C = TypeVar("C")
_UNSET = argparse.SUPPRESS


class ConfigError(ValueError):
    """A flag, variable or key that is unknown, of the wrong type or out of range; the process exits with 78."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    positional: bool = False,
    secret: bool = False,
) -> Any:
    """A field of a Config with what its flag needs. `secret` values are masked when the config is printed."""
    metadata = {"help": help, "choices": choices, "metavar": metavar, "positional": positional, "secret": secret}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def add_flags(parser: argparse.ArgumentParser, *configs: type) -> None:
    """Adds a flag per field of the configs (a field that several share is added once), and `--config`."""
    seen: set[str] = set()
    for config in configs:
        types_of = typing.get_type_hints(config)
        for field in dataclasses.fields(config):
            if field.name not in seen and "help" in field.metadata:
                seen.add(field.name)
                _add_flag(parser, field, types_of[field.name])
    parser.add_argument("--config", metavar="FILE", default=None, help="YAML file with any of these settings")


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field, kind: Any) -> None:
    meta, default = field.metadata, _default(field)
    text = meta["help"]
    if default not in (None, "", dataclasses.MISSING) and default != () and not isinstance(default, (dict, bool)):
        text += f" (default: {default})"
    options: dict[str, Any] = {"default": _UNSET, "help": text.replace("%", "%%"), "dest": field.name}
    base = _base_type(kind)
    if base is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options |= {"type": _reader(base), "choices": meta["choices"]}
        options["metavar"] = meta["metavar"] or (None if meta["choices"] else _METAVARS.get(base, "VALUE"))
    if meta["positional"]:
        options.pop("dest")
        parser.add_argument(field.name, nargs="?", **options)  # may come from the file or the environment
    else:
        parser.add_argument(_flag(field.name), **options)


def read_config(config: type[C], arguments: argparse.Namespace, environ: Mapping[str, str] | None = None) -> C:
    """Builds a Config from flags, `--config` and environment; raises ConfigError naming the setting."""
    environ = os.environ if environ is None else environ
    file = _read_file(arguments.config) if getattr(arguments, "config", None) else {}
    types_of, values = typing.get_type_hints(config), {}
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        name, base = field.name, _base_type(types_of[field.name])
        if hasattr(arguments, name):
            values[name] = getattr(arguments, name)
        elif name in file:
            values[name] = _coerce(name, file[name], base, f"key {name!r} of {arguments.config}")
        elif (variable := f"FOREBAY_{name.upper()}") in environ:
            values[name] = _coerce(name, environ[variable], base, f"environment variable {variable}")
        elif _default(field) is dataclasses.MISSING:
            shown = field.metadata["metavar"] if field.metadata["positional"] else _flag(name)
            raise ConfigError(f"{shown} is missing: {field.metadata['help']}")
        if field.metadata["choices"] and values.get(name) not in (None, *field.metadata["choices"]):
            raise ConfigError(f"{_flag(name)} is {values[name]!r}; it can be {', '.join(field.metadata['choices'])}")
    try:
        return config(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_file_keys(arguments: argparse.Namespace, *configs: type) -> None:
    """Raises ConfigError for a key of the `--config` file that is a setting of none of the configs."""
    if getattr(arguments, "config", None):
        known = {field.name for config in configs for field in dataclasses.fields(config)}
        if unknown := sorted(set(_read_file(arguments.config)) - known):
            raise ConfigError(f"{arguments.config}: unknown setting {', '.join(unknown)}")


def describe_config(config: Any) -> str:
    """The resolved settings on one line, secrets masked, for the log."""
    shown = ((f, getattr(config, f.name)) for f in dataclasses.fields(config) if "help" in f.metadata)
    return " ".join(f"{f.name}={'***' if f.metadata['secret'] and value else value}" for f, value in shown)


def _read_file(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"--config {path}: expected settings as `name: value` lines")
    return {str(key).replace("-", "_"): value for key, value in data.items()}


def _coerce(name: str, value: Any, base: Any, source: str) -> Any:
    """A value of the YAML file or the environment in the field's type."""
    if value is None or (isinstance(base, type) and isinstance(value, base) and not isinstance(value, bool)):
        return value
    try:
        if base is bool:
            words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
            return words[str(value).lower()]
        if base is tuple and isinstance(value, list):
            return tuple(str(item) for item in value)
        return _reader(base)(str(value))
    except (KeyError, ValueError, argparse.ArgumentTypeError) as error:
        raise ConfigError(f"{source}: {value!r} is not a valid {_flag(name)}") from error


def _reader(base: Any) -> Any:
    return {dict: _read_json_object, tuple: _read_list}.get(base, base)


def _read_json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


def _read_list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _base_type(kind: Any) -> Any:
    """`int` for `int | None`; `tuple` for `tuple[str, ...]`; `str` for a Literal."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    origin = typing.get_origin(kind)
    return str if origin is typing.Literal else origin or kind


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


_METAVARS = {int: "N", float: "X", str: "NAME", dict: "JSON", tuple: "A,B,…"}
