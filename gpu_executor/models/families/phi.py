"""Phi-2 (Li et al., 2023): parallel branches behind one LayerNorm, part of each head rotates. Phi-3 (Abdin et al., 2024): Llama
with fused projections, and LongRoPE."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import EMBEDDINGS, GATE, LAYER, MODEL, NORMS, read_attention, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename, split_gate_up, split_qkv
from gpu_executor.models.spec import Mlp, Norm

_PHI_RULES = (
    *EMBEDDINGS,
    rename(r"lm_head\.bias", "head.bias"),
    rename(LAYER + r"input_layernorm\.(weight|bias)", r"layers.\1.norm1.\2"),
    rename(LAYER + r"self_attn\.([qkv])_proj\.(weight|bias)", r"layers.\1.mixer.\2.\3"),
    rename(LAYER + r"self_attn\.dense\.(weight|bias)", r"layers.\1.mixer.o.\2"),
    rename(LAYER + r"self_attn\.([qk])_layernorm\.(weight|bias)", r"layers.\1.mixer.\2_norm.\3", optional=True),
    rename(LAYER + r"mlp\.fc1\.(weight|bias)", r"layers.\1.mlp.up.\2"),
    rename(LAYER + r"mlp\.fc2\.(weight|bias)", r"layers.\1.mlp.down.\2"),
    rename(MODEL + r"final_layernorm\.(weight|bias)", r"norm.\1"),
)
_PHI_EXTRAS = ("norm.bias", "head.bias", *every_layer(
    "norm1.bias", "mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "mixer.q_norm.bias", "mixer.k_norm.bias",
    "mlp.up.bias", "mlp.down.bias",
))  # fmt: skip


@architecture("PhiForCausalLM", examples="Phi-2, Phi-1.5")
def phi(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(partial_rotary_factor=0.5)
    attention = read_attention(config)
    if config.flag("qk_layernorm", default=False):
        attention = dataclasses.replace(attention, qk_norm="head")
    spec = read_model(
        config,
        architecture,
        [attention] * config.integer("num_hidden_layers"),
        norm=Norm("layer", config.number("layer_norm_eps", default=1e-5)),
        mlp=Mlp(config.integer("intermediate_size"), config.activation("hidden_act", default="gelu_new")),
        residual="parallel",
    )
    return Resolved(spec, _PHI_RULES, _PHI_EXTRAS)


@architecture("Phi3ForCausalLM", examples="Phi-4, Phi-4-mini, Phi-3.5-mini, Phi-3")
def phi3(config: ConfigReader, architecture: str) -> Resolved:
    config = _with_longrope(config).with_defaults(rms_norm_eps=1e-5)
    attention = read_attention(config, window=config.integer("sliding_window", default=None))
    spec = read_model(config, architecture, [attention] * config.integer("num_hidden_layers"))
    rules = (
        *EMBEDDINGS,
        *NORMS,
        split_qkv(LAYER + r"self_attn\.qkv_proj\.weight", r"layers.\1.mixer.{}.weight", attention),
        rename(LAYER + r"self_attn\.o_proj\.weight", r"layers.\1.mixer.o.weight"),
        split_gate_up(LAYER + r"mlp\.gate_up_proj\.weight", r"layers.\1.mlp.{}.weight"),
        rename(LAYER + r"mlp\.down_proj\.weight", r"layers.\1.mlp.down.weight"),
    )
    return Resolved(spec, rules, GATE)


def _with_longrope(config: ConfigReader) -> ConfigReader:
    """The first releases call it yarn, with LongRoPE's factors."""
    scaling = config.section("rope_scaling").data
    if scaling.get("type", scaling.get("rope_type")) != "yarn":
        return config
    return config.updated({"rope_scaling": scaling | {"type": "longrope", "rope_type": "longrope"}})
