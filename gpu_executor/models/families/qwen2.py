"""Qwen2 (Yang et al., 2024): Llama with biases on queries, keys and values; the upper layers may have a window."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model, read_windows
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture

_EXTRAS = GATE + every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias")


@architecture("Qwen2ForCausalLM", examples="Qwen2.5, Qwen2, QwQ")
def qwen2(config: ConfigReader, architecture: str) -> Resolved:
    window = None
    if config.flag("use_sliding_window", default=False):
        window = config.integer("sliding_window", default=None if config.has("sliding_window") else 4096)
    full, sliding = read_attention(config), read_attention(config, window=window)
    num_full = config("max_window_layers", default=28)  # and the layers from there on have the window
    windows = read_windows(config, [i >= num_full for i in range(config.integer("num_hidden_layers"))])
    mixers = [sliding if slides else full for slides in windows]
    return Resolved(read_model(config, architecture, mixers), LLAMA_RULES, _EXTRAS)
