"""Owns what an executor knows of its model from the folder's JSON files, and tells frontends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from forebay.errors import CheckpointError
from forebay.fingerprint import PROCESSOR_VERSION
from forebay.model_config import apply_overrides, model_config_path

_EOS_OF_PARAMS = (2,)  # in mistral's own format control tokens have the same ids in every model


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a frontend has to know of the model."""

    architecture: str
    dtype: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    block_size: int
    num_blocks: int
    max_num_seqs: int
    prefix_caching: bool
    model_digest: str
    tokenizer_digest: str
    tasks: tuple[str, ...] = ("generate",)
    embedding_size: int = 0  # 0 where it does not embed
    num_classes: int = 0  # numbers of a classification, a score or a row of rewards; 0 where it does none of these
    num_token_types: int = 0
    modalities: tuple[str, ...] = ()  # of media that prompts can have
    processor_version: int = PROCESSOR_VERSION


def read_model_config(folder: Path, overrides: dict[str, Any] | None) -> dict[str, Any]:
    """config.json as data, or params.json, with `--hf-overrides` merged in."""
    config = _read_json(model_config_path(folder))
    if config is None:
        raise CheckpointError(f"{folder.name} has no config.json: is it a model folder?")
    return apply_overrides(config, overrides) if overrides else config


def eos_token_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Ids that end a sequence: those of generation_config.json if it names any, else those of config.json or its text model."""
    text = config.get("text_config")
    for source in (_read_json(folder / "generation_config.json") or {}, config, text if isinstance(text, dict) else {}):
        value = source.get("eos_token_id")
        if value is not None:
            return tuple(value) if isinstance(value, list) else (value,)
    return _EOS_OF_PARAMS if model_config_path(folder).name == "params.json" else ()


def first_token_id(folder: Path, config: dict[str, Any]) -> int | None:
    """The token that follows a decoder prompt of one token, whatever the model says: forced_bos_token_id.

    As in transformers, a generation_config.json stands for config.json whole: without the key, nothing is forced.
    """
    source = _read_json(folder / "generation_config.json")
    source = config if source is None else source
    if source.get("forced_bos_token_id") is None and source.get("force_bos_token_to_be_generated") is True:
        return source.get("bos_token_id")  # how the first releases said it
    return source.get("forced_bos_token_id")


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} is not a JSON object")
    return data
