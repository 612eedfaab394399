"""Owns how a checkpoint folder without tokenizer.json becomes a TextTokenizer by way of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from forebay.errors import CheckpointError
from preprocess.json_files import read_json
from preprocess.tokenizer import TextTokenizer
from preprocess.tokenizer_adapters import sentencepiece, tiktoken
from preprocess.tokenizer_adapters.recipes import Recipe, find_recipe, find_template

_FILES = ("config.json", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json")
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_TEMPLATES = Path(__file__).parent / "templates"


def adapt_tokenizer(folder: Path) -> TextTokenizer | None:
    """The tokenizer of a folder whose kind is known; None if it is not, or its file is not there.

    Raises CheckpointError for files that contradict themselves, NotOffered for a kind of sentencepiece not served.
    """
    files = {name: read_json(folder / name) for name in _FILES}
    settings = files["tokenizer_config.json"]
    vocabulary = folder / "tokenizer.model"
    is_tiktoken = vocabulary.is_file() and tiktoken.is_tiktoken_file(vocabulary)
    recipe = find_recipe(settings, files["config.json"], is_tiktoken=is_tiktoken)
    if recipe is None or not (folder / (recipe.tiktoken_file or "tokenizer.model")).is_file():
        return None
    named = _named_tokens(recipe, files)
    template = own_template(folder, settings)
    if template is None and (rule := find_template(recipe, files)):
        template = (_TEMPLATES / rule.template).read_text(encoding="utf-8")
        named |= {"eos_token": rule.eos_token} if rule.eos_token else {}
    if recipe.tiktoken_file:
        backend = tiktoken.build(folder / recipe.tiktoken_file, split=recipe.split or "", nfc=recipe.nfc)
        added = _added_tokens(recipe, settings, backend.get_vocab_size())
    else:
        model = sentencepiece.read_model(vocabulary)
        added = _added_tokens(recipe, settings, len(model.pieces))
        roles = _role_tokens(model, files["generation_config.json"])
        named |= roles
        symbols = [p.piece for p in model.pieces if p.type == p.USER_DEFINED]
        written = {symbol for symbol in symbols if template is not None and len(symbol) > 2 and symbol in template}
        backend = sentencepiece.build(
            model,
            renamed={i: name for i, name in added.items() if i < len(model.pieces)},
            controls={*written, *named.values(), *_additional(files)},
            dummy_prefix=recipe.dummy_prefix,
            prefix_once=settings.get("legacy") is False,
        )
    _add_controls(backend, added)
    named = {key: name for key, name in named.items() if backend.token_to_id(name) is not None}
    _add_prefix(backend, recipe, settings, named)
    ends = tuple(name for name in recipe.end_tokens if backend.token_to_id(name) is not None)
    return TextTokenizer(backend, named_tokens=named, chat_template=template, end_tokens=ends)


def _added_tokens(recipe: Recipe, settings: Mapping[str, Any], num_tokens: int) -> dict[int, str]:
    """Control tokens by id: the recipe's after the vocabulary, and what tokenizer_config.json says of any id."""
    added = dict(enumerate(recipe.extra_tokens, start=num_tokens))
    decoder = settings.get("added_tokens_decoder")
    for key, token in (decoder if isinstance(decoder, dict) else {}).items():
        name = _content(token)
        if not str(key).isdigit() or name is None:
            raise CheckpointError(f"tokenizer_config.json: added_tokens_decoder has no token for {key!r}")
        added = {i: other for i, other in added.items() if other != name} | {int(key): name}
    return added


def _add_controls(backend: tokenizers.Tokenizer, added: Mapping[int, str]) -> None:
    """Adds the tokens that follow the vocabulary; ids that none has are filled, for tokens are numbered in order."""
    first, last = backend.get_vocab_size(), max(added, default=-1)
    if last - first > 100_000:
        raise CheckpointError(
            f"tokenizer_config.json: the added token {last} is far beyond the {first} of the vocabulary"
        )
    names = [added.get(i, f"<|unused_{i}|>") for i in range(first, last + 1)]
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
    for i, name in added.items():
        if backend.token_to_id(name) != i:
            raise CheckpointError(
                f"tokenizer_config.json gives {name!r} the id {i}; it has {backend.token_to_id(name)}"
            )


def _add_prefix(
    backend: tokenizers.Tokenizer, recipe: Recipe, settings: Mapping[str, Any], named: Mapping[str, str]
) -> None:
    before, after = list(recipe.prefix_tokens), []
    if settings.get("add_bos_token", recipe.add_bos) and "bos_token" in named:
        before.append(named["bos_token"])
    if settings.get("add_eos_token", recipe.add_eos) and "eos_token" in named:
        after.append(named["eos_token"])
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B:1", *after],
            special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys([*before, *after])],
        )


def _named_tokens(recipe: Recipe, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    sources = (files["special_tokens_map.json"], files["tokenizer_config.json"])
    given = {key: _content(source.get(key)) for source in sources for key in _NAMES if source.get(key)}
    return dict(recipe.named_tokens) | {key: name for key, name in given.items() if name}


def _role_tokens(model: Any, generation_config: Mapping[str, Any]) -> dict[str, str]:
    """The pieces that open a turn, where generation_config.json gives their ids."""
    ids = {role: generation_config.get(f"{role}_id") for role in ("user_token", "assistant_token")}
    if not all(type(i) is int and 0 <= i < len(model.pieces) for i in ids.values()):
        return {}
    return {role: model.pieces[i].piece for role, i in ids.items()}


def _additional(files: Mapping[str, Mapping[str, Any]]) -> set[str]:
    sources = (files["special_tokens_map.json"], files["tokenizer_config.json"])
    lists = (source.get("additional_special_tokens") for source in sources)
    return {name for tokens in lists if isinstance(tokens, list) for token in tokens if (name := _content(token))}


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) and content else None


def own_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template that a checkpoint brings along."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None
