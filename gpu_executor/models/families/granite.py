"""Granite 3 (IBM, 2024): Llama with four multipliers, of embeddings, attention scores, branches and logits."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_biases, read_model
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.spec import FeedForward, ModelSpec


@architecture("GraniteForCausalLM", examples="Granite 3.3, Granite 3.0")
def granite(config: ConfigReader, architecture: str) -> Resolved:
    return Resolved(read_granite(config, architecture), LLAMA_RULES, GATE + read_biases(config))


def read_granite(config: ConfigReader, architecture: str, mlp: FeedForward | None = None) -> ModelSpec:
    """A model with Granite's multipliers, and with `mlp` in every layer if it is not Llama's."""
    attention = dataclasses.replace(read_attention(config), scale=config.number("attention_multiplier", default=1.0))
    return read_model(
        config,
        architecture,
        [attention] * config.integer("num_hidden_layers"),
        mlp=mlp,
        embed_scale=config.number("embedding_multiplier", default=1.0),
        residual_scale=config.number("residual_multiplier", default=1.0),
        logit_scale=1 / config.number("logits_scaling", default=1.0),
    )
