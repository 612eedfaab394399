"""Owns which architectures take media, and finds a checkpoint's processor."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forebay.parts import find_parts, with_parts
from preprocess.json_files import read_json, read_model_config
from preprocess.processors.processor import Processor, ProcessorFiles
from preprocess.tokenizer import TextTokenizer

# None where a checkpoint of this architecture takes text alone.
Factory = Callable[[ProcessorFiles], Processor | None]
_FACTORIES: dict[str, Factory] = {}
_BY_KEYS: dict[frozenset[str], str] = {}


def processor(*architectures: str, keys: tuple[str, ...] = ()) -> Callable[[Factory], Factory]:
    """Registers what makes the processor of checkpoints with these names in `architectures`.

    A config that names no architecture is one of the first name if it holds all of `keys`.
    """

    def register(factory: Factory) -> Factory:
        for name in architectures:
            assert name not in _FACTORIES, f"{name} is registered twice"
            _FACTORIES[name] = factory
        if keys:
            _BY_KEYS[frozenset(keys)] = architectures[0]
        return factory

    return register


def load_processor(
    folder: Path,
    tokenizer: TextTokenizer | None,
    *,
    download_dir: str | None = None,
    hf_overrides: Mapping[str, Any] | None = None,
) -> Processor | None:
    """The processor of a folder; None where the model takes text alone, or has no tokenizer to write prompts with.

    `download_dir` is where configs go of parts that lie in other repositories, `hf_overrides` what is changed in config.json.
    """
    config = read_model_config(folder, hf_overrides)
    _load_processors()
    names = config.get("architectures") or (["mistral-format"] if "vision_encoder" in config else [])
    names = names or [name for keys, name in _BY_KEYS.items() if keys <= config.keys()]
    factory = next((_FACTORIES[name] for name in names if name in _FACTORIES), None)
    if factory is None or tokenizer is None:
        return None
    parts = find_parts(config, download_dir=download_dir, weights=False, progress=False)
    return factory(
        ProcessorFiles(
            with_parts(config, parts),
            read_json(folder / "preprocessor_config.json"),
            read_json(folder / "processor_config.json"),
            tokenizer,
            read_json(folder / "video_preprocessor_config.json"),
        )
    )


@functools.cache
def _load_processors() -> None:
    package = importlib.import_module("preprocess.processors")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
