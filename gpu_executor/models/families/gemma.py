"""Gemma (Mesnard et al., 2024; Gemma 2: Riviere et al., 2024): RMSNorm by 1 + weight, scaled embeddings, wide heads.

Gemma 2 norms what each branch gives as well, caps scores and logits, and has a window in every second layer. Gemma 3 (2025)
norms queries and keys instead of the caps; five layers of six have a window, and a rope of their own.
"""

from __future__ import annotations

import dataclasses
import math

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
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import fold_unit_offset
from gpu_executor.models.spec import Attention, Mlp, ModelSpec

_RULES = (
    *EMBEDDINGS,
    PROJECTIONS,
    MLP,
    fold_unit_offset(LAYER + r"input_layernorm\.weight", r"layers.\1.norm1.weight"),
    fold_unit_offset(MODEL + r"norm\.weight", "norm.weight"),
)
_ONE_NORM = (fold_unit_offset(LAYER + r"post_attention_layernorm\.weight", r"layers.\1.norm2.weight"),)
_SANDWICH = (
    fold_unit_offset(LAYER + r"post_attention_layernorm\.weight", r"layers.\1.post_norm1.weight"),
    fold_unit_offset(LAYER + r"pre_feedforward_layernorm\.weight", r"layers.\1.norm2.weight"),
    fold_unit_offset(LAYER + r"post_feedforward_layernorm\.weight", r"layers.\1.post_norm2.weight"),
)
_NORMS_OF_HEADS = (fold_unit_offset(LAYER + r"self_attn\.([qk])_norm\.weight", r"layers.\1.mixer.\2_norm.weight"),)
_SANDWICH_EXTRAS = GATE + every_layer("post_norm1.weight", "post_norm2.weight")
# What the class means where a config does not say.
_DEFAULTS = {"head_dim": 256, "tie_word_embeddings": True}


def _read_attention(config: ConfigReader) -> Attention:
    if config.flag("use_bidirectional_attention", default=False):
        raise config.wrong(("use_bidirectional_attention",), True, "false in a model that generates")
    return read_attention(config)


def _read_model(
    config: ConfigReader, architecture: str, mixers: list[Attention], logit_softcap: float | None = None
) -> ModelSpec:
    act = config.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh")
    # "gelu" in the first releases means the tanh form, in which the models were trained.
    mlp = Mlp(config.integer("intermediate_size"), "gelu_tanh" if act == "gelu" else act)
    scale = math.sqrt(config.integer("hidden_size"))
    return read_model(config, architecture, mixers, mlp=mlp, embed_scale=scale, logit_softcap=logit_softcap)


@architecture("GemmaForCausalLM", examples="Gemma, CodeGemma")
def gemma(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(**_DEFAULTS)
    mixers = [_read_attention(config)] * config.integer("num_hidden_layers")
    spec = _read_model(config, architecture, mixers)
    return Resolved(spec, _RULES + _ONE_NORM, GATE + read_biases(config))


@architecture("Gemma2ForCausalLM", examples="Gemma 2")
@architecture("Gemma2Model", tasks=("embed",), examples="BGE Multilingual Gemma2")
def gemma2(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(**_DEFAULTS)
    full = dataclasses.replace(
        _read_attention(config),
        scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        softcap=_read_cap(config, "attn_logit_softcapping", 50.0),
    )
    window = read_window(config)
    sliding = dataclasses.replace(full, window=window)
    windows = read_windows(config, [i % 2 == 0 for i in range(config.integer("num_hidden_layers"))])
    mixers = [sliding if slides else full for slides in windows]
    spec = _read_model(config, architecture, mixers, _read_cap(config, "final_logit_softcapping", 30.0))
    return Resolved(spec, _RULES + _SANDWICH, _SANDWICH_EXTRAS + read_biases(config))


@architecture("Gemma3ForCausalLM", examples="Gemma 3 1B, Gemma 3 270M")
def gemma3(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(**_DEFAULTS, rope_theta=1e6, max_position_embeddings=131072)
    local = sliding_layers(config, config.number("rope_local_base_freq", default=10000.0))
    full = dataclasses.replace(
        _read_attention(full_layers(config)),
        scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        softcap=config.number("attn_logit_softcapping", default=None),
        qk_norm="head",
    )
    window = read_window(config)
    sliding = dataclasses.replace(full, positions=_read_attention(local).positions, window=window)
    period = config.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    windows = read_windows(config, [(i + 1) % period > 0 for i in range(config.integer("num_hidden_layers"))])
    mixers = [sliding if slides else full for slides in windows]
    logit_cap = config.number("final_logit_softcapping", default=None)
    # max_position_embeddings is what the scaled rope reaches: nothing stretches it once more.
    spec = _read_model(local, architecture, mixers, logit_cap)
    return Resolved(spec, _RULES + _SANDWICH + _NORMS_OF_HEADS, _SANDWICH_EXTRAS + read_biases(config))


def _read_cap(config: ConfigReader, name: str, default: float) -> float | None:
    """A softcap, which null switches off."""
    return config.number(name, default=None if config.has(name) else default)
