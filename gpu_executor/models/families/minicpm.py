"""MiniCPM (Hu et al., 2024) and MiniCPM4 (2025): Llama with scaled embeddings, branches and logits."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, STEM_RULES, read_attention, read_model
from gpu_executor.models.families.mixtral import expert_rules, read_top_k
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.spec import Mlp, ModelSpec, Moe

_MOE_RULES = (*STEM_RULES, *expert_rules("mlp"))


@architecture("MiniCPMForCausalLM", examples="MiniCPM4 8B, MiniCPM4 0.5B, MiniCPM 2B, MiniCPM-MoE 8x2B")
def minicpm(config: ConfigReader, architecture: str) -> Resolved:
    # MiniCPM4's sparse_config acts on prompts longer than its dense_len only, and vLLM has none of it.
    config = config.updated({"tie_word_embeddings": config.flag("tie_word_embeddings", default=True)})
    mixers = [read_attention(config)] * config.integer("num_hidden_layers")
    with_experts = bool(config("num_experts", default=0))
    mlp = _read_moe(config) if with_experts else _read_mlp(config)
    spec = scaled(config, read_model(config, architecture, mixers, mlp=mlp))
    return Resolved(spec, _MOE_RULES) if with_experts else Resolved(spec, LLAMA_RULES, GATE)


def scaled(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """The model with MiniCPM's scales: of the embedding, of what each branch adds, and of the head."""
    decoder = spec.decoder
    branches = config.number("scale_depth", default=1.0) / len(decoder.layers) ** 0.5
    decoder = dataclasses.replace(
        decoder,
        layers=tuple(dataclasses.replace(layer, residual_scale=branches) for layer in decoder.layers),
        embed_scale=config.number("scale_emb", default=1.0),
        logit_scale=config.integer("dim_model_base", default=1) / decoder.hidden_size,
    )
    return dataclasses.replace(spec, decoder=decoder)


def _read_mlp(config: ConfigReader) -> Mlp:
    size = config.integer("intermediate_size")
    if config("hidden_act", default=None) != "fatrelu":
        return Mlp(size, config.activation("hidden_act", default="silu"))
    bound = config("hidden_act_param", default=0.0)
    if not isinstance(bound, (int, float)):
        raise config.wrong(("hidden_act_param",), bound, "a number")
    return Mlp(size, "fatrelu", float(bound))


def _read_moe(config: ConfigReader) -> Moe:
    num_experts = config.integer("num_experts")
    return Moe(
        num_experts=num_experts,
        top_k=read_top_k(config, num_experts),
        size=config.integer("intermediate_size"),
        act=config.activation("hidden_act", default="silu"),
    )
