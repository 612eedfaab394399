"""GLM-4 (GLM team, 2024) in the layout of transformers: neighbours in half of each head rotate, gate and up are one matrix.

GLM-4-0414 norms what each branch gives as well.
"""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import (
    EMBEDDINGS,
    GATE,
    LAYER,
    NORMS,
    projections_of_neighbours,
    read_attention,
    read_model,
)
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename, split_gate_up

_MLP = (
    split_gate_up(LAYER + r"mlp\.gate_up_proj\.weight", r"layers.\1.mlp.{}.weight"),
    rename(LAYER + r"mlp\.down_proj\.weight", r"layers.\1.mlp.down.weight"),
)


_SANDWICH = (
    rename(LAYER + r"post_self_attn_layernorm\.weight", r"layers.\1.post_norm1.weight"),
    rename(LAYER + r"post_mlp_layernorm\.weight", r"layers.\1.post_norm2.weight"),
)


@architecture("GlmForCausalLM", examples="GLM-4 9B, GLM-Edge")
def glm(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(head_dim=128, partial_rotary_factor=0.5, attention_bias=True, rms_norm_eps=1.5625e-7)
    attention = read_attention(config)
    spec = read_model(config, architecture, [attention] * config.integer("num_hidden_layers"))
    biases = ("mixer.q.bias", "mixer.k.bias", "mixer.v.bias") if config.flag("attention_bias", default=True) else ()
    rules = (*EMBEDDINGS, *NORMS, *projections_of_neighbours(attention), *_MLP)
    return Resolved(spec, rules, GATE + every_layer(*biases))


@architecture("Glm4ForCausalLM", examples="GLM-4-0414, GLM-Z1")
def glm4(config: ConfigReader, architecture: str) -> Resolved:
    plain = glm(config, architecture)
    extras = plain.extras + every_layer("post_norm1.weight", "post_norm2.weight")
    return dataclasses.replace(plain, rules=plain.rules + _SANDWICH, extras=extras)
