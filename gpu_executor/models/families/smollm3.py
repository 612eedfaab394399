"""SmolLM3 (Hugging Face, 2025): Llama in which every fourth layer has no positions (Yang et al., 2025)."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import (
    GATE,
    LLAMA_RULES,
    read_attention,
    read_biases,
    read_model,
    read_windows,
)
from gpu_executor.models.registry import Resolved, architecture


@architecture("SmolLM3ForCausalLM", examples="SmolLM3 3B")
def smollm3(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(rope_theta=2e6, tie_word_embeddings=True)
    num_layers, period = config.integer("num_hidden_layers"), config.integer("no_rope_layer_interval", default=4)
    # Despite the key's name, 1 stands for a layer that has a rope.
    rotates = config("no_rope_layers", default=[int((i + 1) % period > 0) for i in range(num_layers)])
    if not isinstance(rotates, list) or len(rotates) != num_layers or not set(rotates) <= {0, 1}:
        raise config.wrong(("no_rope_layers",), rotates, f"{num_layers} of 0 and 1")
    window = config.integer("sliding_window", default=None)
    if not config.flag("use_sliding_window", default=False):
        window = None
    attention = read_attention(config)
    mixers = [
        dataclasses.replace(
            attention, positions=attention.positions if rotated else None, window=window if slides else None
        )
        for rotated, slides in zip(rotates, read_windows(config, [not rotated for rotated in rotates]), strict=True)
    ]
    return Resolved(read_model(config, architecture, mixers), LLAMA_RULES, GATE + read_biases(config))
