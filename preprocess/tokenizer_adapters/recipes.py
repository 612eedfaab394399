"""Owns facts: what a repository's own tokenizer code adds to its files, by the name of the tokenizer class.

Where they come from: public copies of the authors' tokenization files for QWen, ChatGLM2, ChatGLM3, GLM-4, Phi-3-small,
Baichuan, InternLM2 and TeleChat. Of Orion, Arctic and InternLM no copy was at hand; all that is said of them is that
they are Llama's tokenizer with <s> in front. A key of tokenizer_config.json overrides any of it. A prompt format is
given only where the released code writes it and a JSON file of the checkpoint says that it is that release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# tiktoken's cl100k_base; QWen's takes digits one by one.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K_SPLIT = _SPLIT.replace("DIGITS", r"\p{N}{1,3}")
QWEN_SPLIT = _SPLIT.replace("DIGITS", r"\p{N}")


@dataclass(frozen=True, slots=True)
class TemplateRule:
    """A file of templates/ that holds where a key of a JSON file of the checkpoint has a value."""

    template: str
    file: str
    key: str
    value: str  # regular expression for the whole value, as text
    eos_token: str | None = None  # what ends an answer in this format, if it is not the model's own end of text


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is known of a tokenizer class beyond the files that it reads."""

    tiktoken_file: str | None = None  # None: the vocabulary is sentencepiece's tokenizer.model
    split: str | None = None  # regular expression that cuts text before byte pairs are merged; tiktoken only
    nfc: bool = False  # text is brought into Unicode's normal form C first
    extra_tokens: tuple[str, ...] = ()  # control tokens that follow the vocabulary, in the order of their ids
    prefix_tokens: tuple[str, ...] = ()  # put in front of every text
    add_bos: bool = False
    add_eos: bool = False
    dummy_prefix: bool | None = None  # overrides sentencepiece's add_dummy_prefix
    named_tokens: Mapping[str, str] = field(default_factory=dict)
    end_tokens: tuple[str, ...] = ()  # end an answer besides the end of text, if the vocabulary has them
    templates: tuple[TemplateRule, ...] = ()


_SENTENCEPIECE_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_BAICHUAN = Recipe(
    add_bos=True,
    named_tokens=_SENTENCEPIECE_NAMES,
    # generation_utils.py: a turn is the id of its role, which generation_config.json gives, and the bare text.
    templates=(TemplateRule("baichuan.jinja", "generation_config.json", "user_token_id", r"\d+"),),
)
_TELECHAT = {"bos_token": "<_start>", "eos_token": "<_end>", "pad_token": "<_pad>", "unk_token": "<unk>"}
_ENDOFTEXT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
# Phi-3-small: cl100k_base leaves ids unused and the vocabulary is padded to 100,352; dummies fill both.
_PHI3_SMALL = (
    "<|dummy_id_2|>", "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|dummy_id_0|>", "<|dummy_id_1|>", "<|end|>", *(f"<|dummy_id_{i}|>" for i in range(3, 12)),
    "<|endofprompt|>", *(f"<|dummy_id_{i}|>" for i in range(12, 87)),
)  # fmt: skip
_GLM4_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

RECIPES: dict[str, Recipe] = {
    "BaiChuanTokenizer": _BAICHUAN,
    "BaichuanTokenizer": _BAICHUAN,
    "InternLMTokenizer": Recipe(add_bos=True, named_tokens=_SENTENCEPIECE_NAMES),
    "InternLM2Tokenizer": Recipe(add_bos=True, named_tokens=_SENTENCEPIECE_NAMES),
    "OrionTokenizer": Recipe(add_bos=True, named_tokens=_SENTENCEPIECE_NAMES),
    "ArcticTokenizer": Recipe(add_bos=True, named_tokens=_SENTENCEPIECE_NAMES),  # a LlamaTokenizer with other defaults
    "TelechatTokenizer": Recipe(named_tokens=_TELECHAT),
    "TELECHATTokenizer": Recipe(dummy_prefix=True, named_tokens=_SENTENCEPIECE_NAMES),
    # ChatGLM2 has the first five tokens only; the ids of the roles are padding there, which nothing writes.
    "ChatGLMTokenizer": Recipe(
        extra_tokens=("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", *_GLM4_ROLES),
        prefix_tokens=("[gMASK]", "sop"),
        named_tokens={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
        end_tokens=("<|user|>", "<|observation|>"),
        templates=(
            TemplateRule("chatglm2.jinja", "config.json", "_name_or_path", r"(THUDM|zai-org)/chatglm2-6b(-32k|-int4)?"),
            TemplateRule("chatglm3.jinja", "config.json", "_name_or_path", r"(THUDM|zai-org)/chatglm3-6b(-\d+k)?"),
        ),
    ),
    "ChatGLM4Tokenizer": Recipe(
        tiktoken_file="tokenizer.model",
        split=CL100K_SPLIT,
        extra_tokens=(
            "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *_GLM4_ROLES, "<|begin_of_image|>",
            "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
        ),
        prefix_tokens=("[gMASK]", "<sop>"),
        named_tokens={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        end_tokens=("<|user|>", "<|observation|>"),
        templates=(
            TemplateRule("glm4.jinja", "config.json", "_name_or_path", r"(THUDM|zai-org)/glm-4-9b-chat(-1m)?"),
        ),
    ),
    "QWenTokenizer": Recipe(
        tiktoken_file="qwen.tiktoken",
        split=QWEN_SPLIT,
        nfc=True,
        extra_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
        named_tokens={"eos_token": "<|endoftext|>"},
        # qwen_generation_utils.py: the base model's chat_format is "raw".
        templates=(TemplateRule("qwen.jinja", "generation_config.json", "chat_format", "chatml", "<|im_end|>"),),
    ),
    "Phi3SmallTokenizer": Recipe(
        tiktoken_file="cl100k_base.tiktoken",
        split=CL100K_SPLIT,
        extra_tokens=_PHI3_SMALL,
        named_tokens=_ENDOFTEXT,
        end_tokens=("<|end|>",),
    ),
}  # fmt: skip

# A class that has further tokens where config.json has a section: Qwen-VL's for pictures and what is marked in them.
_WITH_SECTION = {
    "QWenTokenizer": (
        "visual",
        ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"),
    ),
}

# For checkpoints whose tokenizer_config.json names no class. Files decide between two.
_BY_MODEL_TYPE = {
    "arctic": ("ArcticTokenizer",),
    "baichuan": ("BaichuanTokenizer",),
    "chatglm": ("ChatGLMTokenizer", "ChatGLM4Tokenizer"),
    "internlm": ("InternLMTokenizer",),
    "internlm2": ("InternLM2Tokenizer",),
    "orion": ("OrionTokenizer",),
    "phi3small": ("Phi3SmallTokenizer",),
    "qwen": ("QWenTokenizer",),
    "telechat": ("TelechatTokenizer",),
}


def tokenizer_class(tokenizer_config: Mapping[str, Any]) -> str | None:
    """The name of the tokenizer class: as tokenizer_config.json gives it, or as its auto_map does."""
    named = tokenizer_config.get("tokenizer_class")
    return named.removesuffix("Fast") if isinstance(named, str) else own_code(tokenizer_config)


def own_code(tokenizer_config: Mapping[str, Any]) -> str | None:
    """The class of the repository's own code that its auto_map asks for, without the module; None if it asks for none."""
    mapped = tokenizer_config.get("auto_map")
    target = mapped.get("AutoTokenizer") if isinstance(mapped, dict) else mapped
    names = target if isinstance(target, list) else [target]
    found = next((name for name in names if isinstance(name, str)), None)
    return found.rpartition(".")[2].removesuffix("Fast") if found else None


def find_recipe(tokenizer_config: Mapping[str, Any], config: Mapping[str, Any], *, is_tiktoken: bool) -> Recipe | None:
    """What is known of the checkpoint's tokenizer; `is_tiktoken` says what its tokenizer.model is, if it has one."""
    name = tokenizer_class(tokenizer_config)
    names = (name,) if name else _BY_MODEL_TYPE.get(str(config.get("model_type")), ())
    recipes = [_with_section(name, config) for name in names if name in RECIPES]
    fitting = [
        r for r in recipes if r.tiktoken_file not in (None, "tokenizer.model") or bool(r.tiktoken_file) == is_tiktoken
    ]
    return next(iter(fitting), None)


def _with_section(name: str, config: Mapping[str, Any]) -> Recipe:
    section, tokens = _WITH_SECTION.get(name, ("", ()))
    recipe = RECIPES[name]
    return replace(recipe, extra_tokens=recipe.extra_tokens + tokens) if config.get(section) else recipe


def find_template(recipe: Recipe, files: Mapping[str, Mapping[str, Any]]) -> TemplateRule | None:
    """The rule whose file says so; None where nothing says which prompt format the checkpoint was trained with."""
    for rule in recipe.templates:
        value = files[rule.file].get(rule.key)
        if isinstance(value, str | int) and re.fullmatch(rule.value, str(value)):
            return rule
    return None
