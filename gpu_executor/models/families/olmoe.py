"""OLMoE (Muennighoff et al., 2024): many small experts, and norms of all queries and of all keys together."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import LAYER, STEM_RULES, read_attention, read_biases, read_model
from gpu_executor.models.families.mixtral import read_top_k
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.spec import Moe

_RULES = (
    *STEM_RULES,
    rename(LAYER + r"self_attn\.([qk])_norm\.weight", r"layers.\1.mixer.\2_norm.weight"),
    rename(LAYER + r"mlp\.gate\.weight", r"layers.\1.mlp.router.weight"),
    rename(LAYER + r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight", r"layers.\1.mlp.experts.\2.\3.weight"),
)


@architecture("OlmoeForCausalLM", examples="OLMoE-1B-7B")
def olmoe(config: ConfigReader, architecture: str) -> Resolved:
    mixer = dataclasses.replace(
        read_attention(config), qk_norm="projection", clip=config.number("clip_qkv", default=None)
    )
    num_experts = config.integer("num_experts", default=64)
    moe = Moe(
        num_experts=num_experts,
        top_k=read_top_k(config, num_experts, default=8),
        size=config.integer("intermediate_size"),
        act=config.activation("hidden_act", default="silu"),
        renormalize=config.flag("norm_topk_prob", default=False),
    )
    spec = read_model(config, architecture, [mixer] * config.integer("num_hidden_layers"), mlp=moe)
    return Resolved(spec, _RULES, read_biases(config))
