"""OLMo (Groeneveld et al., 2024): norms without weights, clamped projections. OLMo 2 (2025): norms behind the branches.

OLMo 3 (2025) is OLMo 2 with windows in three layers of four, and a rope that is scaled in the fourth alone.
"""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import (
    EMBEDDINGS,
    GATE,
    LAYER,
    MLP,
    MODEL,
    PROJECTIONS,
    full_layers,
    read_attention,
    read_biases,
    read_model,
    read_window,
    read_windows,
    sliding_layers,
)
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.spec import Norm

_OLMO2_RULES = (
    *EMBEDDINGS,
    PROJECTIONS,
    MLP,
    rename(LAYER + r"self_attn\.([qk])_norm\.weight", r"layers.\1.mixer.\2_norm.weight"),
    rename(LAYER + r"post_attention_layernorm\.weight", r"layers.\1.norm1.weight"),
    rename(LAYER + r"post_feedforward_layernorm\.weight", r"layers.\1.norm2.weight"),
    rename(MODEL + r"norm\.weight", "norm.weight"),
)


@architecture("OlmoForCausalLM", examples="OLMo 7B, OLMo 1B")
def olmo(config: ConfigReader, architecture: str) -> Resolved:
    attention = dataclasses.replace(read_attention(config), clip=config.number("clip_qkv", default=None))
    mixers = [attention] * config.integer("num_hidden_layers")
    spec = read_model(config, architecture, mixers, norm=Norm("layer", 1e-5, affine=False))
    return Resolved(spec, (*EMBEDDINGS, PROJECTIONS, MLP), GATE + read_biases(config))


@architecture("Olmo2ForCausalLM", examples="OLMo 2")
def olmo2(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(rms_norm_eps=1e-5)
    attention = dataclasses.replace(read_attention(config), qk_norm="projection")
    mixers = [attention] * config.integer("num_hidden_layers")
    spec = read_model(config, architecture, mixers, residual="branch_norm")
    return Resolved(spec, _OLMO2_RULES, GATE + read_biases(config))


@architecture("Olmo3ForCausalLM", examples="OLMo 3")
def olmo3(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(rms_norm_eps=1e-5, rope_theta=500000.0)
    window = read_window(config)
    full, sliding = read_attention(full_layers(config)), read_attention(sliding_layers(config))
    full = dataclasses.replace(full, qk_norm="projection")
    sliding = dataclasses.replace(full, positions=sliding.positions, window=window)
    windows = read_windows(config, [(i + 1) % 4 > 0 for i in range(config.integer("num_hidden_layers"))])
    mixers = [sliding if slides else full for slides in windows]
    spec = read_model(full_layers(config), architecture, mixers, residual="branch_norm")
    return Resolved(spec, _OLMO2_RULES, GATE + read_biases(config))
