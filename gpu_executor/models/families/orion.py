"""Orion (OrionStar, 2024): Llama with LayerNorm, its epsilon under the other norm's name."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.spec import Norm

_RULES = (
    *LLAMA_RULES,
    rename(r"(?:model\.)?layers\.(\d+)\.input_layernorm\.bias", r"layers.\1.norm1.bias"),
    rename(r"(?:model\.)?layers\.(\d+)\.post_attention_layernorm\.bias", r"layers.\1.norm2.bias"),
    rename(r"(?:model\.)?norm\.bias", "norm.bias"),
)
_EXTRAS = (*GATE, *every_layer("norm1.bias", "norm2.bias"), "norm.bias")


@architecture("OrionForCausalLM", examples="Orion 14B")
def orion(config: ConfigReader, architecture: str) -> Resolved:
    mixers = [read_attention(config)] * config.integer("num_hidden_layers")
    spec = read_model(config, architecture, mixers)
    norm = Norm("layer", config.number("rms_norm_eps", default=1e-5))
    return Resolved(dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, norm=norm)), _RULES, _EXTRAS)
