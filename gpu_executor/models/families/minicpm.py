"""MiniCPM (Hu et al., 2024) and MiniCPM4 (2025): Llama with scaled embeddings, branches and logits."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.spec import FeedForward, Layer, Mlp, ModelSpec


@architecture("MiniCPMForCausalLM", examples="MiniCPM4 8B, MiniCPM4 0.5B, MiniCPM 2B, MiniCPM 1B")
def minicpm(config: ConfigReader, architecture: str) -> Resolved:
    return Resolved(_model(config, architecture, _mlp(config)), LLAMA_RULES, GATE)


def _model(config: ConfigReader, architecture: str, mlp: FeedForward) -> ModelSpec:
    # MiniCPM4's sparse_config acts on prompts longer than its dense_len only, and vLLM has none of it.
    num_layers = config.integer("num_hidden_layers")
    branches = config.number("scale_depth", default=1.0) / num_layers**0.5
    tied = config.flag("tie_word_embeddings", default=True)
    spec = read_model(config.updated({"tie_word_embeddings": tied, "hidden_act": "silu"}), architecture, [])
    decoder = dataclasses.replace(
        spec.decoder,
        layers=(Layer(read_attention(config), mlp, residual_scale=branches),) * num_layers,
        embed_scale=config.number("scale_emb", default=1.0),
        logit_scale=config.integer("dim_model_base", default=1) / spec.decoder.hidden_size,
    )
    return dataclasses.replace(spec, decoder=decoder)


def _mlp(config: ConfigReader) -> Mlp:
    size = config.integer("intermediate_size")
    if config("hidden_act", default=None) != "fatrelu":
        return Mlp(size, config.activation("hidden_act", default="silu"))
    bound = config("hidden_act_param", default=0.0)
    if not isinstance(bound, (int, float)):
        raise config.wrong(("hidden_act_param",), bound, "a number")
    return Mlp(size, "fatrelu", float(bound))
