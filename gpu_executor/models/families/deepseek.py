"""DeepSeekMoE (Dai et al., 2024): ordinary attention, many small experts, and shared ones that every token passes."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import (
    GATE,
    LAYER,
    STEM_RULES,
    read_attention,
    read_biases,
    read_mlp,
    read_model,
)
from gpu_executor.models.families.mixtral import read_top_k
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.spec import Mlp, Moe

# The first layers have an ordinary MLP.
MOE_RULES: tuple[Rule, ...] = (
    rename(LAYER + r"mlp\.(gate|up|down)_proj\.(weight|bias)", r"layers.\1.mlp.\2.\3", optional=True),
    rename(LAYER + r"mlp\.gate\.weight", r"layers.\1.mlp.router.weight", optional=True),
    rename(LAYER + r"mlp\.gate\.e_score_correction_bias", r"layers.\1.mlp.router.score_bias", optional=True),
    rename(LAYER + r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight", r"layers.\1.mlp.experts.\2.\3.weight", optional=True),
    rename(LAYER + r"mlp\.shared_experts\.(gate|up|down)_proj\.weight", r"layers.\1.mlp.shared.\2.weight", optional=True),
)  # fmt: skip


def read_moe(config: ConfigReader) -> Moe | None:
    """The experts of a DeepSeek config, routed as in its first generation; None if all layers are dense."""
    num_experts = config.integer("n_routed_experts", default=None)
    if num_experts is None:
        return None
    size, num_shared = config.integer("moe_intermediate_size"), config.integer("n_shared_experts", default=None)
    return Moe(
        num_experts=num_experts,
        top_k=read_top_k(config, num_experts, default=6),
        size=size,
        act=config.activation("hidden_act", default="silu"),
        renormalize=config.flag("norm_topk_prob", default=False),
        shared_size=num_shared and num_shared * size,
    )


def read_mlps(config: ConfigReader, moe: Moe | None) -> list[Mlp | Moe]:
    """The experts in all but the first layers, of which later ones may be dense too."""
    dense, first = read_mlp(config), config("first_k_dense_replace", default=0)
    step = config.integer("moe_layer_freq", default=1)
    return [dense if moe is None or i < first or i % step else moe for i in range(config.integer("num_hidden_layers"))]


@architecture("DeepseekForCausalLM", examples="DeepSeek-MoE-16B")
def deepseek(config: ConfigReader, architecture: str) -> Resolved:
    mlps = read_mlps(config, read_moe(config))
    model = read_model(config, architecture, [read_attention(config)] * len(mlps), mlps=mlps)
    return Resolved(model, (*STEM_RULES, *MOE_RULES), GATE + read_biases(config))
