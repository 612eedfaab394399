"""Owns tokenizers made of mistral's tekken.json: byte pairs as in a tiktoken file, behind numbered control tokens."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors

from forebay.errors import CheckpointError
from preprocess.json_files import read_json
from preprocess.tokenizer import TextTokenizer
from preprocess.tokenizer_adapters import tiktoken

# Of files that do not list them, in the order of their ids; those behind are called <SPECIAL_20> and so on.
_CONTROLS = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
# Prompt formats by the `version` of the file.
_TEMPLATES = {"v3": "mistral_v3.jinja", "v7": "mistral_v7.jinja"}


def read_tekken(folder: Path, chat_template: str | None) -> TextTokenizer:
    """The tokenizer of a folder's tekken.json; where the checkpoint has no template, that of the file's version.

    Raises CheckpointError for a file that is none, or lacks ids or bytes.
    """
    data = read_json(folder / "tekken.json")
    config = data.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("pattern"), str):
        raise CheckpointError("tekken.json of the checkpoint has no config with a pattern")
    controls = _controls(data, config)
    ranks = _ranks(data, _count(config, "default_vocab_size") - len(controls))
    backend = tiktoken.build_from_ranks(ranks, split=config["pattern"], before=controls)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in controls])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", controls.index("<s>"))]
    )
    if chat_template is None and (name := _TEMPLATES.get(str(config.get("version")))):
        chat_template = (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
    named = {key: name for key, name in _NAMES.items() if name in controls}
    return TextTokenizer(backend, named_tokens=named, chat_template=chat_template)


def _controls(data: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The names of the control tokens, by id."""
    count = _count(config, "default_num_special_tokens")
    given = data.get("special_tokens")
    try:
        listed = (
            {int(token["rank"]): str(token["token_str"]) for token in given} if given else dict(enumerate(_CONTROLS))
        )
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"special_tokens of tekken.json cannot be read: {error}") from error
    names = [listed.get(index, f"<SPECIAL_{index}>") for index in range(count)]
    if len(set(names)) != count or "<s>" not in names:
        raise CheckpointError("the control tokens of tekken.json are not all different, or have no <s>")
    return names


def _ranks(data: dict[str, Any], count: int) -> dict[bytes, int]:
    """The first `count` tokens of text; the file may hold more than the model knows."""
    try:
        tokens = {base64.b64decode(token["token_bytes"], validate=True): int(token["rank"]) for token in data["vocab"]}
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"vocab of tekken.json cannot be read: {error}") from error
    ranks = {token: rank for token, rank in tokens.items() if rank < count}
    if len(ranks) != count:
        raise CheckpointError(
            f"tekken.json has {len(ranks):,} of the {count:,} tokens that its default_vocab_size asks for"
        )
    return tiktoken.checked_ranks(ranks, "tekken.json")


def _count(config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{name} of tekken.json is {str(value)[:100]}; it must be a whole number above 0")
    return value
