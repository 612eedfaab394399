"""Qwen2 (Yang et al., 2024): Llama with biases on queries, keys and values; the upper layers may have a window."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATED, LLAMA_RULES, biases, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture


@architecture("Qwen2ForCausalLM", examples="Qwen2.5, Qwen2, QwQ")
def qwen2(config: ConfigReader) -> Resolved:
    num_layers = config.integer("num_hidden_layers")
    window = config("sliding_window", default=None) if config("use_sliding_window", default=False) else None
    # layer_types, which newer configs write, says the same as max_window_layers: the first layers see everything.
    num_full = config("max_window_layers", default=28)
    kinds = config(
        "layer_types", default=["full_attention" if i < num_full else "sliding_attention" for i in range(num_layers)]
    )
    full, sliding = read_attention(config), read_attention(config, window=window)
    mixers = [sliding if kind == "sliding_attention" else full for kind in kinds]
    return Resolved(read_model(config, mixers), LLAMA_RULES, GATED + biases("mixer.q", "mixer.k", "mixer.v"))
