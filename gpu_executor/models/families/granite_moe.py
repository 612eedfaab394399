"""Granite 3.0 MoE (Granite Team, 2024; PowerMoE: Shen et al., 2024): Granite's multipliers, experts in fused tensors."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.granite import read_granite
from gpu_executor.models.families.llama import LAYER, STEM_RULES, read_biases
from gpu_executor.models.families.mixtral import read_top_k
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, split_experts
from gpu_executor.models.spec import Moe


def _rules(num_experts: int) -> tuple[Rule, ...]:
    expert = r"layers.\1.mlp.experts.{}."
    gate_up, down = (expert + "gate.weight", expert + "up.weight"), (expert + "down.weight",)
    moe = LAYER + r"block_sparse_moe\."
    return (
        *STEM_RULES,
        rename(moe + r"router\.layer\.weight", r"layers.\1.mlp.router.weight"),
        split_experts(moe + r"input_linear\.weight", gate_up, num_experts, lambda matrix: matrix.chunk(2)),
        split_experts(moe + r"output_linear\.weight", down, num_experts, lambda matrix: (matrix,)),
    )


@architecture("GraniteMoeForCausalLM", examples="Granite 3.1 3B-A800M, Granite 3.1 1B-A400M, PowerMoE-3b")
def granite_moe(config: ConfigReader, architecture: str) -> Resolved:
    num_experts = config.integer("num_local_experts", default=8)
    moe = Moe(
        num_experts=num_experts,
        top_k=read_top_k(config, num_experts),
        size=config.integer("intermediate_size"),
        act=config.activation("hidden_act", default="silu"),
        score="softmax_topk",
    )
    return Resolved(read_granite(config, architecture, moe), _rules(num_experts), read_biases(config))
