"""Command R (Cohere, 2024): parallel branches behind one LayerNorm without bias, neighbours rotate, scaled logits.

Command R7B and later (cohere2): windows in three layers of four; the fourth sees everything, and has no positions.
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
    projections_of_neighbours,
    read_attention,
    read_biases,
    read_model,
    read_window,
    read_windows,
)
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, split_heads
from gpu_executor.models.spec import Attention, ModelSpec, Norm

_RULES = (
    *EMBEDDINGS,
    MLP,
    rename(LAYER + r"input_layernorm\.weight", r"layers.\1.norm1.weight"),
    rename(MODEL + r"norm\.weight", "norm.weight"),
)


def _read_model(config: ConfigReader, architecture: str, mixers: list[Attention]) -> ModelSpec:
    norm = Norm("layer", config.number("layer_norm_eps", default=1e-5))
    scale = config.number("logit_scale", default=0.0625)
    return read_model(config, architecture, mixers, norm=norm, residual="parallel", logit_scale=scale)


@architecture("CohereForCausalLM", examples="Command R, Command R+, Aya")
def cohere(config: ConfigReader, architecture: str) -> Resolved:
    # Command R announces 8,192 positions, and beside them the 131,072 tokens that it was trained for.
    config = config.updated({"max_position_embeddings": config.integer("model_max_length", default=None)})
    config = config.with_defaults(rope_theta=500000.0, tie_word_embeddings=True)
    attention = read_attention(config)
    norms: tuple[Rule, ...] = ()
    if config.flag("use_qk_norm", default=False):
        attention = dataclasses.replace(attention, qk_norm="heads")
        norms = tuple(
            split_heads(
                LAYER + rf"self_attn\.{part}_norm\.weight",
                rf"layers.\1.mixer.{part}_norm.{{}}.weight",
                num_heads,
                neighbours=attention.head_dim,
            )
            for part, num_heads in (("q", attention.num_heads), ("k", attention.num_kv_heads))
        )
    spec = _read_model(config, architecture, [attention] * config.integer("num_hidden_layers"))
    return Resolved(spec, _RULES + projections_of_neighbours(attention) + norms, GATE + read_biases(config))


@architecture("Cohere2ForCausalLM", examples="Command A, Command R7B, Aya Vision's language model")
def cohere2(config: ConfigReader, architecture: str) -> Resolved:
    config = config.with_defaults(tie_word_embeddings=True)
    window = read_window(config)
    sliding = read_attention(config, window=window)
    full = dataclasses.replace(sliding, window=None, positions=None)
    period = config.integer("sliding_window_pattern", default=4)
    windows = read_windows(config, [(i + 1) % period > 0 for i in range(config.integer("num_hidden_layers"))])
    spec = _read_model(config, architecture, [sliding if slides else full for slides in windows])
    return Resolved(spec, _RULES + projections_of_neighbours(sliding), GATE + read_biases(config))
