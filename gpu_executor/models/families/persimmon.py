"""Persimmon (Adept, 2023): LayerNorm, also of each head of queries and keys; half of each head rotates; squared ReLU."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import EMBEDDINGS, LAYER, MODEL, read_attention, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, split_qkv
from gpu_executor.models.spec import Attention, Mlp, Norm

_EXTRAS = ("norm.bias", *every_layer(
    "norm1.bias", "mixer.q.bias", "mixer.k.bias", "mixer.v.bias", "mixer.o.bias", "mixer.q_norm.bias", "mixer.k_norm.bias",
    "norm2.bias", "mlp.up.bias", "mlp.down.bias",
))  # fmt: skip


def _rules(attention: Attention) -> tuple[Rule, ...]:
    return (
        *EMBEDDINGS,
        rename(LAYER + r"input_layernorm\.(weight|bias)", r"layers.\1.norm1.\2"),
        split_qkv(
            LAYER + r"self_attn\.query_key_value\.(weight|bias)",
            r"layers.\1.mixer.{}.\2",
            attention,
            layout="grouped",
        ),
        rename(LAYER + r"self_attn\.dense\.(weight|bias)", r"layers.\1.mixer.o.\2"),
        rename(LAYER + r"self_attn\.([qk])_layernorm\.(weight|bias)", r"layers.\1.mixer.\2_norm.\3", optional=True),
        rename(LAYER + r"post_attention_layernorm\.(weight|bias)", r"layers.\1.norm2.\2"),
        rename(LAYER + r"mlp\.dense_h_to_4h\.(weight|bias)", r"layers.\1.mlp.up.\2"),
        rename(LAYER + r"mlp\.dense_4h_to_h\.(weight|bias)", r"layers.\1.mlp.down.\2"),
        rename(MODEL + r"final_layernorm\.(weight|bias)", r"norm.\1"),
    )


@architecture("PersimmonForCausalLM", examples="Persimmon 8B")
def persimmon(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(partial_rotary_factor=0.5)
    attention = read_attention(config)
    if config.flag("qk_layernorm", default=True):
        attention = dataclasses.replace(attention, qk_norm="head")
    spec = read_model(
        config,
        architecture,
        [attention] * config.integer("num_hidden_layers"),
        norm=Norm("layer", config.number("layer_norm_eps", default=1e-5)),
        mlp=Mlp(config.integer("intermediate_size"), config.activation("hidden_act", default="relu2")),
    )
    return Resolved(spec, _rules(attention), _EXTRAS)
