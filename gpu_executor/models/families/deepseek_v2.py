"""DeepSeek-V2 and DeepSeek-V3 (DeepSeek-AI, 2024): latent attention, many small experts in groups, and shared ones."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.deepseek import MOE_RULES, read_mlps, read_moe
from gpu_executor.models.families.llama import GATE, LAYER, STEM_RULES, read_attention, read_biases, read_model
from gpu_executor.models.names import every_layer
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rope import read_rope, read_score_scale
from gpu_executor.models.rules import Rule, permute_rope, rename, skip
from gpu_executor.models.spec import Mla, Moe, Norm


def read_mla(config: ConfigReader) -> Mla:
    """Latent attention of a DeepSeek-like config."""
    num_heads, rope_dim = config.integer("num_attention_heads"), config.integer("qk_rope_head_dim")
    nope_dim = config.integer("qk_nope_head_dim")
    return Mla(
        num_heads=num_heads,
        nope_dim=nope_dim,
        v_dim=config.integer("v_head_dim", default=None) or config.head_dim("hidden_size", "num_attention_heads"),
        kv_rank=config.integer("kv_lora_rank"),
        q_rank=config.integer("q_lora_rank", default=None),
        rope=read_rope(config, rope_dim),
        scale=(nope_dim + rope_dim) ** -0.5 * read_score_scale(config),
        norm=Norm("rms", 1e-6),  # whatever rms_norm_eps says of the others
    )


def mla_rules(mla: Mla, *, neighbours: bool) -> tuple[Rule, ...]:
    """Names of latent attention; with `neighbours` the rotating part of a head is in pairs (2i, 2i + 1)."""

    def rotating(pattern: str, target: str, start: int) -> Rule:
        if not neighbours:
            return rename(LAYER + pattern, target, optional=True)
        head_dim = start + mla.rope.dim
        return permute_rope(
            LAYER + pattern, target, head_dim=head_dim, rope_dim=mla.rope.dim, start=start, optional=True
        )

    return (
        rotating(r"self_attn\.q_proj\.weight", r"layers.\1.mixer.q.weight", mla.nope_dim),
        rename(LAYER + r"self_attn\.q_a_proj\.(weight|bias)", r"layers.\1.mixer.q_a.\2", optional=True),
        rename(LAYER + r"self_attn\.q_a_layernorm\.weight", r"layers.\1.mixer.q_norm.weight", optional=True),
        rotating(r"self_attn\.q_b_proj\.weight", r"layers.\1.mixer.q_b.weight", mla.nope_dim),
        rotating(r"self_attn\.kv_a_proj_with_mqa\.(weight|bias)", r"layers.\1.mixer.kv_a.\2", mla.kv_rank),
        rename(LAYER + r"self_attn\.kv_a_layernorm\.weight", r"layers.\1.mixer.kv_norm.weight"),
        rename(LAYER + r"self_attn\.kv_b_proj\.weight", r"layers.\1.mixer.kv_b.weight"),
    )


def mla_biases(config: ConfigReader) -> tuple[str, ...]:
    """Biases that checkpoints hold if `attention_bias` says so: of the latents and of the output."""
    if not config.flag("attention_bias", default=False):
        return ()
    return every_layer("mixer.q_a.bias", "mixer.kv_a.bias", "mixer.o.bias")


@architecture("DeepseekV2ForCausalLM", examples="DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2")
def deepseek_v2(config: ConfigReader, architecture: str) -> Resolved:
    method = config("topk_method", default="greedy")
    if method == "noaux_tc":  # as in DeepSeek-VL2's language model
        return _resolved(config, architecture, _by_score_and_bias(config))
    if method not in ("greedy", "group_limited_greedy"):
        raise config.wrong(("topk_method",), method, "greedy, group_limited_greedy or noaux_tc")
    moe = read_moe(config)
    if moe is not None:
        moe = dataclasses.replace(moe, renormalize=False, scale=config.number("routed_scaling_factor", default=1.0))
        if method == "group_limited_greedy":
            moe = _in_groups(config, moe)
    return _resolved(config, architecture, moe)


@architecture("DeepseekV3ForCausalLM", examples="DeepSeek-V3, DeepSeek-R1, Kimi K2, Moonlight-16B-A3B")
def deepseek_v3(config: ConfigReader, architecture: str) -> Resolved:
    return _resolved(config, architecture, _by_score_and_bias(config))


def _by_score_and_bias(config: ConfigReader) -> Moe | None:
    """The router of V3, balanced by a bias on the choice instead of by a loss."""
    moe = read_moe(config)
    if moe is None:
        return None
    moe = dataclasses.replace(
        moe,
        score="sigmoid",
        renormalize=config.flag("norm_topk_prob", default=True),
        scale=config.number("routed_scaling_factor", default=1.0),
        group_score="top2",
    )
    return _in_groups(config, moe)


def _in_groups(config: ConfigReader, moe: Moe) -> Moe:
    num_groups = config.integer("n_group", default=1)
    topk_groups = config.integer("topk_group", default=num_groups)
    size = moe.num_experts // num_groups
    if moe.num_experts % num_groups or (num_groups > 1 and moe.group_score == "top2" and size < 2):
        raise config.wrong(("n_group",), num_groups, f"a number of even groups of the {moe.num_experts} experts")
    if topk_groups > num_groups or topk_groups * size < moe.top_k:
        raise config.wrong(("topk_group",), topk_groups, f"at most n_group, and enough for {moe.top_k} experts a token")
    return dataclasses.replace(moe, num_groups=num_groups, topk_groups=topk_groups)


def _resolved(config: ConfigReader, architecture: str, moe: Moe | None) -> Resolved:
    num_layers = config.integer("num_hidden_layers")
    rules = (_skip_layers_from(num_layers),)
    if config.flag("use_mla", default=True):
        mixer, extras = read_mla(config), GATE + mla_biases(config)
        rules += mla_rules(mixer, neighbours=config.flag("rope_interleave", default=True))
    else:  # as in the smallest DeepSeek-VL2
        mixer, extras = read_attention(config), GATE + read_biases(config)
    if moe is not None and moe.score == "sigmoid":
        extras += every_layer("mlp.router.score_bias")
    spec = read_model(config, architecture, [mixer] * num_layers, mlps=read_mlps(config, moe))
    return Resolved(spec, (*rules, *STEM_RULES, *MOE_RULES), extras)


def _skip_layers_from(num_layers: int) -> Rule:
    """V3's files hold layers behind the last one that predict further tokens; V3 has one, and says so nowhere but in its size."""
    served = "|".join(map(str, range(num_layers)))
    return skip(rf"(?:model\.)?layers\.(?!(?:{served})\.)\d+\..+")
