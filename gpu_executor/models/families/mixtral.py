"""Mixtral (Jiang et al., 2024): Mistral with experts in place of every MLP. Its names serve other mixtures of experts."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import LAYER, STEM_RULES, read_attention, read_model
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.spec import Moe


def expert_rules(name: str) -> tuple[Rule, ...]:
    """A router called gate, and experts with matrices w1 (gate), w3 (up) and w2 (down), below `name` of a layer."""
    return (
        rename(LAYER + name + r"\.gate\.weight", r"layers.\1.mlp.router.weight"),
        rename(LAYER + name + r"\.experts\.(\d+)\.w1\.weight", r"layers.\1.mlp.experts.\2.gate.weight"),
        rename(LAYER + name + r"\.experts\.(\d+)\.w3\.weight", r"layers.\1.mlp.experts.\2.up.weight"),
        rename(LAYER + name + r"\.experts\.(\d+)\.w2\.weight", r"layers.\1.mlp.experts.\2.down.weight"),
    )


def read_top_k(config: ConfigReader, num_experts: int, key: str = "num_experts_per_tok", default: int = 2) -> int:
    """How many of num_experts each token is sent to."""
    top_k = config.integer(key, default=default)
    if top_k > num_experts:
        raise config.wrong((key,), top_k, f"at most {num_experts}, the number of experts")
    return top_k


MIXTRAL_RULES = (*STEM_RULES, *expert_rules("block_sparse_moe"))


@architecture("MixtralForCausalLM", examples="Mixtral 8x7B, Mixtral 8x22B")
def mixtral(config: ConfigReader, architecture: str) -> Resolved:
    mixer = read_attention(config.with_defaults(rope_theta=1e6), window=config.integer("sliding_window", default=None))
    num_experts = config.integer("num_local_experts", "num_experts", default=8)
    moe = Moe(
        num_experts=num_experts,
        top_k=read_top_k(config, num_experts),
        size=config.integer("intermediate_size"),
        act=config.activation("hidden_act", default="silu"),
    )
    spec = read_model(config, architecture, [mixer] * config.integer("num_hidden_layers"), mlp=moe)
    return Resolved(spec, MIXTRAL_RULES)
