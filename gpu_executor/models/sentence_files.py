"""Owns the files of sentence-transformers in a model's folder, read as data.

modules.json lists the steps behind the model, 1_Pooling/config.json says which hidden states count, and
sentence_bert_config.json how long a text may be.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from forebay.errors import CheckpointError, NotOffered
from gpu_executor.models.spec import PoolingKind

_MODES = {"cls_token": "cls", "lasttoken": "last", "mean_tokens": "mean"}  # of 1_Pooling/config.json


@dataclasses.dataclass(frozen=True, slots=True)
class SentenceFiles:
    """What a folder's files for sentence-transformers say."""

    kind: PoolingKind
    normalize: bool
    max_tokens: int | None


def read_sentence_files(folder: Path) -> SentenceFiles | None:
    """What they say, or None if there are none. Raises NotOffered for steps that are not served."""
    modules = read_json(folder / "modules.json")
    if modules is None:
        return None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError("modules.json is not a list of objects")
    paths = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    unknown = [name for name in paths if name not in ("Transformer", "Pooling", "Normalize")]
    if unknown:
        raise NotOffered(f"modules.json lists {unknown[0][:100]}, which is not served; Pooling and Normalize are")
    limits = read_json(folder / "sentence_bert_config.json")
    max_tokens = limits.get("max_seq_length") if isinstance(limits, dict) else None
    if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 1):
        raise CheckpointError(f"max_seq_length of sentence_bert_config.json is {max_tokens!r}; it must be above 0")
    if "Pooling" not in paths or ".." in Path(paths["Pooling"]).parts:
        raise CheckpointError("modules.json lists no Pooling with a folder of its own")
    return SentenceFiles(_read_mode(folder / paths["Pooling"] / "config.json"), "Normalize" in paths, max_tokens)


def _read_mode(path: Path) -> PoolingKind:
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path.parent.name}/{path.name} is not there, or not a JSON object")
    modes = [
        key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value
    ]
    if not modes:
        named = config.get("pooling_mode", "mean")
        modes = [{"cls": "cls_token", "mean": "mean_tokens"}.get(named, named)]
    if len(modes) != 1 or modes[0] not in _MODES:
        raise NotOffered(
            f"this checkpoint pools {' and '.join(map(str, modes))}; {', '.join(_MODES)} are served, one at a time"
        )
    return _MODES[modes[0]]


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} is not readable JSON: {error}") from error
