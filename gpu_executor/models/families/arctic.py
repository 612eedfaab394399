"""Snowflake Arctic (Snowflake AI Research, 2024): a dense model, with experts beside the MLPs of every other layer."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LAYER, STEM_RULES, read_attention, read_mlp, read_model
from gpu_executor.models.families.mixtral import expert_rules, read_top_k
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.spec import Layer, Moe


def _mlp_rules(name: str, target: str) -> tuple[Rule, ...]:
    return tuple(
        rename(LAYER + rf"{name}\.{matrix}\.weight", rf"layers.\1.{target}.{part}.weight", optional=True)
        for matrix, part in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
    )


_RULES = (
    *STEM_RULES,
    *expert_rules("block_sparse_moe"),
    *_mlp_rules(r"block_sparse_moe\.mlp", "mlp"),  # of layers without experts
    *_mlp_rules("residual_mlp", "mlp.shared"),
    rename(LAYER + r"residual_layernorm\.weight", r"layers.\1.shared_norm.weight", optional=True),
)


@architecture("ArcticForCausalLM", examples="Snowflake Arctic")
def arctic(config: ConfigReader, architecture: str) -> Resolved:
    num_experts = config.integer("num_local_experts", default=8)
    top_k = read_top_k(config, num_experts, default=1)
    beside = config.flag("use_residual", "parallel_attn_mlp_res", default=False)
    moe = Moe(
        num_experts=num_experts,
        top_k=top_k,
        size=config.integer("intermediate_size"),
        act=config.activation("hidden_act", default="silu"),
        renormalize=top_k > 1,
        shared_size=config.integer("hidden_size") if beside else None,
    )
    mixer = read_attention(config.with_defaults(rope_theta=1e6), window=config.integer("sliding_window", default=None))
    dense = Layer(mixer, read_mlp(config))
    sparse = Layer(mixer, moe, "experts_beside" if beside else "sequential")
    frequency = config.integer("moe_layer_frequency", default=2)
    layers = [dense if (i + 1) % frequency else sparse for i in range(config.integer("num_hidden_layers"))]
    model = read_model(config, architecture, [mixer] * len(layers))
    decoder = dataclasses.replace(model.decoder, layers=tuple(layers))
    norms = tuple(f"layers.{i}.shared_norm.weight" for i, layer in enumerate(layers) if layer.mlp is moe and beside)
    return Resolved(dataclasses.replace(model, decoder=decoder), _RULES, (*GATE, *norms))
