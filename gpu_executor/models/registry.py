"""Owns which architectures there are, and finds the family of a config."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable

from forebay.errors import CheckpointError, NotOffered, UnknownArchitecture
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.rules import Rule
from gpu_executor.models.spec import ModelSpec


@dataclasses.dataclass(frozen=True, slots=True)
class Resolved:
    """What a family makes of a config: the model, how its checkpoints' tensors get there, and which they hold.

    `extras` are canonical names beyond what every decoder has; `layers.*.` stands for every layer. `parts` are sections of
    config.json whose tensors may lie in a checkpoint of their own, with what comes before their names in this one.
    """

    spec: ModelSpec
    rules: tuple[Rule, ...]
    extras: tuple[str, ...] = ()
    parts: tuple[tuple[str, str], ...] = ()


# A config, and the name among its `architectures` that the family was found by.
Family = Callable[[ConfigReader, str], Resolved]


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """A name that config.json may hold, and what serves it."""

    name: str
    family: str
    tasks: tuple[str, ...]
    inputs: tuple[str, ...]
    examples: str
    resolve: Family


_ARCHITECTURES: dict[str, Architecture] = {}
_BY_KEYS: dict[frozenset[str], str] = {}

# What an architecture of one task can do besides, with the hidden states alone.
_BESIDES = {"generate": ("embed", "classify", "reward"), "embed": ("reward",)}


def architecture(
    *names: str,
    examples: str,
    tasks: tuple[str, ...] = ("generate",),
    inputs: tuple[str, ...] = ("text",),
    keys: tuple[str, ...] = (),
) -> Callable[[Family], Family]:
    """Registers a family's function under the names that config.json files use; `examples` are models that people know.

    A config that names no architecture is one of the first name if it holds all of `keys`.
    """

    def register(resolve: Family) -> Family:
        family = resolve.__module__.rpartition(".")[2]
        for name in names:
            assert name not in _ARCHITECTURES, f"{name} is registered twice"
            _ARCHITECTURES[name] = Architecture(name, family, tasks, inputs, examples, resolve)
        if keys:
            _BY_KEYS[frozenset(keys)] = names[0]
        return resolve

    return register


def architectures() -> list[Architecture]:
    """All of them, by name."""
    _load_families()
    return [_ARCHITECTURES[name] for name in sorted(_ARCHITECTURES, key=str.lower)]


def resolve(config: ConfigReader, task: str | None = None, *, with_head: bool = False) -> Resolved:
    """The family's reading of a config for a task, by default the architecture's first.

    Other tasks than generating do without the head over the vocabulary, unless `with_head`. Raises UnknownArchitecture
    with the nearest names, and NotOffered for a task that the model cannot do.
    """
    found = find(config)
    task = task or found.tasks[0]
    besides = tuple(other for own in found.tasks for other in _BESIDES.get(own, ()))
    if task not in found.tasks + besides:
        offers = ", ".join(dict.fromkeys(found.tasks + besides))
        raise NotOffered(f"{found.name} does not serve the task {task}; it serves {offers}")
    resolved = found.resolve(config.for_task(task), found.name)
    if task == "generate":
        if resolved.spec.bidirectional:
            raise CheckpointError(f"config.json says that this {found.name} is not causal: it cannot generate")
        return resolved
    if with_head and "generate" not in found.tasks:
        raise NotOffered(f"{found.name} has no head over the vocabulary whose columns returned_token_ids could name")
    if resolved.spec.encoder is not None:
        raise NotOffered(f"{found.name} has an encoder and a decoder, and only generates")
    return dataclasses.replace(resolved, spec=dataclasses.replace(resolved.spec, has_head=with_head))


def find(config: ConfigReader) -> Architecture:
    """The architecture of a config; raises UnknownArchitecture with the nearest names."""
    _load_families()
    names = (
        [] if config.has("architectures") else [name for keys, name in _BY_KEYS.items() if keys <= config.data.keys()]
    )
    names = names or config.architectures
    for name in names:
        if name in _ARCHITECTURES:
            return _ARCHITECTURES[name]
    nearest = difflib.get_close_matches(names[0], _ARCHITECTURES, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "`forebay models` lists those it does"
    raise UnknownArchitecture(f"Forebay does not serve the architecture {names[0][:100]!r}; {hint}")


@functools.cache
def _load_families() -> None:
    package = importlib.import_module("gpu_executor.models.families")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
