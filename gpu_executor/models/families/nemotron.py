"""Nemotron-4 (Parmar et al., 2024): LayerNorm by 1 + weight, squared ReLU without a gate, half of each head rotates."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import (
    EMBEDDINGS,
    LAYER,
    MLP,
    MODEL,
    PROJECTIONS,
    read_attention,
    read_biases,
    read_model,
)
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import fold_unit_offset, rename
from gpu_executor.models.spec import Mlp, Norm

_RULES = (
    *EMBEDDINGS,
    PROJECTIONS,
    MLP,
    fold_unit_offset(LAYER + r"input_layernorm\.weight", r"layers.\1.norm1.weight"),
    rename(LAYER + r"input_layernorm\.bias", r"layers.\1.norm1.bias"),
    fold_unit_offset(LAYER + r"post_attention_layernorm\.weight", r"layers.\1.norm2.weight"),
    rename(LAYER + r"post_attention_layernorm\.bias", r"layers.\1.norm2.bias"),
    fold_unit_offset(MODEL + r"norm\.weight", "norm.weight"),
    rename(MODEL + r"norm\.bias", "norm.bias"),
)


@architecture("NemotronForCausalLM", examples="Nemotron-4, Minitron")
def nemotron(config: ConfigReader, architecture: str) -> Resolved:
    older = config("rope_percent", "rope_percentage", default=None)  # the name in the first releases
    config = config.updated({"partial_rotary_factor": older}).with_defaults(partial_rotary_factor=0.5)
    spec = read_model(
        config,
        architecture,
        [read_attention(config)] * config.integer("num_hidden_layers"),
        norm=Norm("layer", config.number("norm_eps", default=1e-5)),
        mlp=Mlp(config.integer("intermediate_size"), config.activation("hidden_act", default="relu2")),
    )
    return Resolved(spec, _RULES, ("norm.bias", *every_layer("norm1.bias", "norm2.bias"), *_biases(config)))


def _biases(config: ConfigReader) -> tuple[str, ...]:
    return tuple(name for name in read_biases(config) if "gate" not in name)
