"""StableLM (Bellagente et al., 2024): Llama with LayerNorm, and a quarter of each head rotates.

The 12B has both branches behind one norm, and a norm for each head of queries and keys.
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
    read_attention,
    read_model,
)
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.spec import Norm

_RULES = (
    *EMBEDDINGS,
    PROJECTIONS,
    MLP,
    rename(LAYER + r"input_layernorm\.(weight|bias)", r"layers.\1.norm1.\2"),
    rename(LAYER + r"post_attention_layernorm\.(weight|bias)", r"layers.\1.norm2.\2", optional=True),
    rename(
        LAYER + r"self_attn\.([qk])_layernorm\.norms\.(\d+)\.weight",
        r"layers.\1.mixer.\2_norm.\3.weight",
        optional=True,
    ),
    rename(MODEL + r"norm\.(weight|bias)", r"norm.\1"),
)


@architecture("StableLmForCausalLM", "StableLMEpochForCausalLM", examples="StableLM 2, StableLM 3B")
def stablelm(config: ConfigReader, architecture: str) -> Resolved:
    rotates = config("rope_pct", "partial_rotary_factor", default=0.25)  # the first releases have other names
    config = config.updated({"partial_rotary_factor": rotates})
    attention = read_attention(config)
    if config.flag("qk_layernorm", default=False):
        attention = dataclasses.replace(attention, qk_norm="heads")
    parallel = config.flag("use_parallel_residual", default=False)
    spec = read_model(
        config,
        architecture,
        [attention] * config.integer("num_hidden_layers"),
        norm=Norm("layer", config.number("norm_eps", "layer_norm_eps", default=1e-5)),
        residual="parallel" if parallel else "sequential",
    )
    extras = ("norm.bias", *GATE, *every_layer("norm1.bias"), *(() if parallel else every_layer("norm2.bias")))
    if config.flag("use_qkv_bias", default=False):
        extras += every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias")
    return Resolved(spec, _RULES, extras)
