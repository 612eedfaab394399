"""Qwen1.5-MoE and Qwen2-57B-A14B (Yang et al., 2024): Qwen2 with many small experts and a gated shared one."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import GATE, LAYER, STEM_RULES, read_mlp, read_model
from gpu_executor.models.families.mixtral import read_top_k
from gpu_executor.models.families.qwen2 import read_mixers
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.spec import Mlp, Moe

# Layers without experts have an ordinary MLP; often there is none.
PROJ_RULES: tuple[Rule, ...] = (
    rename(LAYER + r"mlp\.gate\.weight", r"layers.\1.mlp.router.weight"),
    rename(LAYER + r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight", r"layers.\1.mlp.experts.\2.\3.weight"),
    rename(LAYER + r"mlp\.(gate|up|down)_proj\.weight", r"layers.\1.mlp.\2.weight", optional=True),
)
_RULES = (
    *STEM_RULES,
    *PROJ_RULES,
    rename(LAYER + r"mlp\.shared_expert\.(gate|up|down)_proj\.weight", r"layers.\1.mlp.shared.\2.weight"),
    rename(LAYER + r"mlp\.shared_expert_gate\.weight", r"layers.\1.mlp.shared_gate.weight"),
)


@architecture("Qwen2MoeForCausalLM", examples="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B")
def qwen2_moe(config: ConfigReader, architecture: str) -> Resolved:
    extras = GATE + every_layer("mlp.shared_gate.weight")
    if config.flag("qkv_bias", default=True):
        extras += every_layer("mixer.q.bias", "mixer.k.bias", "mixer.v.bias")
    return Resolved(read_model(config, architecture, read_mixers(config), mlps=_read_mlps(config)), _RULES, extras)


def _read_mlps(config: ConfigReader) -> list[Mlp | Moe]:
    """Experts in every decoder_sparse_step-th layer that mlp_only_layers does not name."""
    num_experts = config.integer("num_experts")
    moe = Moe(
        num_experts=num_experts,
        top_k=read_top_k(config, num_experts, default=4),
        size=config.integer("moe_intermediate_size"),
        act=config.activation("hidden_act", default="silu"),
        renormalize=config.flag("norm_topk_prob", default=False),
        shared_size=config.integer("shared_expert_intermediate_size"),
    )
    dense, step = config("mlp_only_layers", default=[]), config.integer("decoder_sparse_step", default=1)
    if not isinstance(dense, list):
        raise config.wrong(("mlp_only_layers",), dense, "a list of layers")
    num_layers = config.integer("num_hidden_layers")
    sparse = [i not in dense and (i + 1) % step == 0 for i in range(num_layers)]
    return [moe if with_experts else read_mlp(config) for with_experts in sparse]
