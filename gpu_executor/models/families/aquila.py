"""Aquila (BAAI, 2023): Llama under another name; the headless name stands for the whole language model too."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture


@architecture("AquilaForCausalLM", "AquilaModel", examples="Aquila 7B, Aquila2 34B")
def aquila(config: ConfigReader, architecture: str) -> Resolved:
    mixers = [read_attention(config)] * config.integer("num_hidden_layers")
    return Resolved(read_model(config, architecture, mixers), LLAMA_RULES, GATE)
