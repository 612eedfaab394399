"""Phi-3.5-MoE (Abdin et al., 2024): LayerNorm, biases, and a router that picks two experts one after the other."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import LAYER, read_attention, read_biases, read_model
from gpu_executor.models.families.mixtral import MIXTRAL_RULES
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.spec import Moe, Norm

_RULES = (
    *MIXTRAL_RULES,
    rename(LAYER + r"input_layernorm\.bias", r"layers.\1.norm1.bias"),
    rename(LAYER + r"post_attention_layernorm\.bias", r"layers.\1.norm2.bias"),
    rename(r"(?:model\.)?norm\.bias", "norm.bias"),
    rename(r"lm_head\.bias", "head.bias", optional=True),
)


@architecture("PhiMoEForCausalLM", "PhimoeForCausalLM", examples="Phi-3.5-MoE, Phi-mini-MoE")
def phimoe(config: ConfigReader, architecture: str) -> Resolved:
    mixer = read_attention(config.with_defaults(rope_theta=1e6), window=config.integer("sliding_window", default=None))
    moe = Moe(
        num_experts=config.integer("num_local_experts", default=16),
        top_k=2,
        size=config.integer("intermediate_size"),
        act=config.activation("hidden_act", default="silu"),
        score="sparse_mixer",
        jitter=config.number("router_jitter_noise", default=0.01),
    )
    norm = Norm("layer", config.number("rms_norm_eps", default=1e-5))
    spec = read_model(config, architecture, [mixer] * config.integer("num_hidden_layers"), norm=norm, mlp=moe)
    extras = ("norm.bias", *every_layer("norm1.bias", "norm2.bias"), *read_biases(config))
    if config.flag("lm_head_bias", default=False):
        extras += ("head.bias",)
    return Resolved(spec, _RULES, extras)
