"""Owns the named prompts of a checkpoint: what sentence-transformers puts before a text, by what the text is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forebay.errors import CheckpointError, InvalidRequest
from preprocess.json_files import read_json, read_json_value

MAX_SHOWN_NAME = 64


@dataclass(frozen=True, slots=True)
class SentencePrompts:
    """Texts that stand before inputs, by name. `counted` False: a mean over tokens leaves theirs out."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default_name: str | None = None
    counted: bool = True

    def text(self, name: str) -> str:
        """The prompt of this name, or, if that is empty, the default one; raises InvalidRequest for an unknown name."""
        if not name:
            return self.texts[self.default_name] if self.default_name else ""
        if name not in self.texts:
            known = f"it has {', '.join(sorted(self.texts))}" if self.texts else "it has none"
            problem = f"the checkpoint has no prompt {name[:MAX_SHOWN_NAME]!r}; {known}"
            raise InvalidRequest(problem, fields=(("prompt_name", known),))
        return self.texts[name]


def read_sentence_prompts(folder: Path) -> SentencePrompts:
    """What config_sentence_transformers.json and the pooling's own config say; raises CheckpointError if they cannot be."""
    config = read_json(folder / "config_sentence_transformers.json")
    texts, default_name = config.get("prompts") or {}, config.get("default_prompt_name") or None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise CheckpointError("config_sentence_transformers.json: prompts is not an object of texts")
    if default_name is not None and default_name not in texts:
        raise CheckpointError(
            f"config_sentence_transformers.json: prompts has no {default_name!r}, which is the default"
        )
    return SentencePrompts(texts, default_name, _counted(folder))


def _counted(folder: Path) -> bool:
    """`include_prompt` of the pooling that modules.json lists."""
    modules: Any = read_json_value(folder / "modules.json")
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and str(module.get("type", "")).endswith(".Pooling"):
            path = Path(str(module.get("path", "")))
            if path.is_absolute() or ".." in path.parts:
                raise CheckpointError("modules.json lists a Pooling whose path leaves the checkpoint")
            return read_json(folder / path / "config.json").get("include_prompt") is not False
    return True
