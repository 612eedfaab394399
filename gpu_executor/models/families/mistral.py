"""Mistral 7B (Jiang et al., 2023): Llama with a sliding window in every layer, unless config.json says null."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model, read_window
from gpu_executor.models.registry import Resolved, architecture


@architecture("MistralForCausalLM", examples="Mistral 7B, Mistral Nemo")
@architecture("MistralModel", tasks=("embed",), examples="E5 Mistral, SFR-Embedding-Mistral")
def mistral(config: ConfigReader, architecture: str) -> Resolved:
    window = read_window(config)
    mixers = [read_attention(config, window=window)] * config.integer("num_hidden_layers")
    return Resolved(read_model(config, architecture, mixers), LLAMA_RULES, GATE)
