"""Mistral 7B (Jiang et al., 2023): Llama with a sliding window in every layer, where config.json names one."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATED, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture


@architecture("MistralForCausalLM", examples="Mistral 7B, Mistral Nemo")
def mistral(config: ConfigReader) -> Resolved:
    mixer = read_attention(config, window=config("sliding_window", default=None))
    return Resolved(read_model(config, [mixer] * config.integer("num_hidden_layers")), LLAMA_RULES, GATED)
