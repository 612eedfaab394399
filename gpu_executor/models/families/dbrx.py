"""DBRX (Databricks, 2024): clamped attention and experts whose matrices lie one below the other in three tensors."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.mixtral import read_top_k
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rope import read_rope
from gpu_executor.models.rules import Rule, rename, split_experts, split_qkv
from gpu_executor.models.spec import Attention, DecoderSpec, Layer, ModelSpec, Moe, Norm

_LAYER = r"(?:transformer\.)?blocks\.(\d+)\."
_ATTENTION = _LAYER + r"norm_attn_norm\."


def _rules(attention: Attention, num_experts: int) -> tuple[Rule, ...]:
    experts, target = _LAYER + r"ffn\.experts\.mlp\.", r"layers.\1.mlp.experts.{}."
    return (
        rename(r"(?:transformer\.)?wte\.weight", "embed.weight"),
        rename(_ATTENTION + r"norm_([12])\.weight", r"layers.\1.norm\2.weight"),
        split_qkv(_ATTENTION + r"attn\.Wqkv\.weight", r"layers.\1.mixer.{}.weight", attention),
        rename(_ATTENTION + r"attn\.out_proj\.weight", r"layers.\1.mixer.o.weight"),
        rename(_LAYER + r"ffn\.router\.layer\.weight", r"layers.\1.mlp.router.weight"),
        split_experts(experts + "w1", (target + "gate.weight",), num_experts, lambda w1: (w1,)),
        split_experts(experts + "v1", (target + "up.weight",), num_experts, lambda v1: (v1,)),
        split_experts(experts + "w2", (target + "down.weight",), num_experts, lambda w2: (w2.t(),)),
        rename(r"(?:transformer\.)?norm_f\.weight", "norm.weight"),
        rename(r"lm_head\.weight", "head.weight"),
    )


@architecture("DbrxForCausalLM", examples="DBRX")
def dbrx(config: ConfigReader, architecture: str) -> Resolved:
    attn, ffn = config.section("attn_config"), config.section("ffn_config")
    num_heads, num_kv_heads = config.integer("n_heads"), attn.integer("kv_n_heads", default=1)
    if num_heads % num_kv_heads:
        raise attn.wrong(("kv_n_heads",), num_kv_heads, f"a divisor of {num_heads}, n_heads")
    head_dim = config.head_dim("d_model", "n_heads")
    mixer = Attention(
        num_heads, num_kv_heads, head_dim, head_dim**-0.5, read_rope(attn, head_dim),
        clip=attn.number("clip_qkv", default=None),
    )  # fmt: skip
    norm_power = ffn("moe_normalize_expert_weights", default=None if ffn.has("moe_normalize_expert_weights") else 1)
    if norm_power not in (1, None):
        raise ffn.wrong(("moe_normalize_expert_weights",), norm_power, "1 or null")
    num_experts = ffn.integer("moe_num_experts", default=4)
    moe = Moe(
        num_experts=num_experts,
        top_k=read_top_k(ffn, num_experts, "moe_top_k", default=1),
        size=ffn.integer("ffn_hidden_size"),
        act=ffn.section("ffn_act_fn").activation("name", default="silu"),
        renormalize=norm_power is not None,
    )
    decoder = DecoderSpec(
        layers=(Layer(mixer, moe),) * config.integer("n_layers"),
        norm=Norm("layer", 1e-5),
        hidden_size=config.integer("d_model"),
    )
    spec = ModelSpec(architecture, decoder, config.integer("vocab_size"), config.context(config.integer("max_seq_len")))
    return Resolved(spec, _rules(mixer, num_experts))
