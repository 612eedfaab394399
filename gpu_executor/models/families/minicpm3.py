"""MiniCPM3 (OpenBMB, 2024; MiniCPM: Hu et al., 2024): MiniCPM's scales with the latent attention of DeepSeek-V2."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.deepseek_v2 import mla_biases, mla_rules, read_mla
from gpu_executor.models.families.llama import GATE, LLAMA_RULES, read_model
from gpu_executor.models.families.minicpm import scaled
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture


@architecture("MiniCPM3ForCausalLM", examples="MiniCPM3 4B")
def minicpm3(config: ConfigReader, architecture: str) -> Resolved:
    num_layers, hidden_size = config.integer("num_hidden_layers"), config.integer("hidden_size")
    config = config.updated({
        "tie_word_embeddings": config.flag("tie_word_embeddings", default=True),
        "scale_emb": config.number("scale_emb", default=12.0),
        # null turns a scale off
        "scale_depth": config.number("scale_depth", default=num_layers**0.5 if config.has("scale_depth") else 1.4),
        "dim_model_base": config.integer("dim_model_base", default=hidden_size if config.has("dim_model_base") else 256),
    })  # fmt: skip
    mla, extras = read_mla(config), GATE + mla_biases(config)
    if config.flag("mlp_bias", default=False):
        extras += every_layer("mlp.gate.bias", "mlp.up.bias", "mlp.down.bias")
    spec = scaled(config, read_model(config, architecture, [mla] * num_layers))
    return Resolved(spec, (*mla_rules(mla, neighbours=False), *LLAMA_RULES), extras)
