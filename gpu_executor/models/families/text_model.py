"""The text model inside a multimodal one: a section of config.json, read by whichever family serves it alone."""

from __future__ import annotations

import dataclasses

from gpu_executor.models import registry
from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.registry import Resolved
from gpu_executor.models.rules import Rule

# Architectures of sections that give a model_type alone.
_OF_MODEL_TYPE = {
    "chatglm": "ChatGLMModel", "cohere": "CohereForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM",
    "gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM", "internlm2": "InternLM2ForCausalLM",
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM", "opt": "OPTForCausalLM",
    "persimmon": "PersimmonForCausalLM", "phi": "PhiForCausalLM", "phi3": "Phi3ForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip

# What transformers' config classes mean where a section does not say: released checkpoints leave out what equals it.
_SIZE_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip
_SIZES = {
    "gemma": (256000, 3072, 24576, 28, 16, 16, 8192),
    "gemma2": (256000, 2304, 9216, 26, 8, 4, 8192),
    "llama": (32000, 4096, 11008, 32, 32, None, 2048),
    "mistral": (32000, 4096, 14336, 32, 32, 8, 131072),
    "mixtral": (32000, 4096, 14336, 32, 32, 8, 131072),
    "phi3": (32064, 3072, 8192, 32, 32, None, 4096),
    "qwen2": (151936, 4096, 22016, 32, 32, 32, 32768),
}


def text_model(
    config: ConfigReader, *sections: str, prefix: str, default_type: str = "llama", architecture: str | None = None
) -> Resolved:
    """The text model of the first of `sections` that is there; its rules apply behind the regular expression `prefix`.

    `architecture` names the one that reads the section, whatever it says itself. Raises UnknownArchitecture for a text
    model that is not served.
    """
    section = config.section(*sections)
    model_type = section("model_type", default=default_type)
    sizes = dict(zip(_SIZE_KEYS, _SIZES.get(model_type, ()), strict=False))
    section = section.with_defaults(**sizes)
    if architecture is None and section("architectures", default=None) is None:
        architecture = _OF_MODEL_TYPE.get(model_type, model_type)
    if architecture is not None:
        section = section.updated({"architectures": [architecture]})
    found = registry.find(section)
    resolved = found.resolve(section.for_task("generate"), found.name)
    return dataclasses.replace(resolved, rules=behind(prefix, resolved.rules))


def behind(prefix: str, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Rules for the same tensors with a prefix before their names; it must have no groups of its own."""
    return tuple(dataclasses.replace(rule, pattern=f"(?:{prefix})(?:{rule.pattern})") for rule in rules)
