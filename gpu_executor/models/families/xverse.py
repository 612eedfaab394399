"""XVERSE (Shenzhen Yuanxiang, 2023): Llama under another name."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture


@architecture("XverseForCausalLM", examples="XVERSE 7B, 13B, 65B")
def xverse(config: ConfigReader, architecture: str) -> Resolved:
    mixers = [read_attention(config)] * config.integer("num_hidden_layers")
    return Resolved(read_model(config, architecture, mixers), LLAMA_RULES, GATE)
