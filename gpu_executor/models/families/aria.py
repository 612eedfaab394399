"""Aria (Li et al., 2024): a mixture of experts on Llama's plan, some of them shared, that sees through SigLIP."""

from __future__ import annotations

import dataclasses

import torch

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import LAYER, STEM_RULES, read_attention, read_biases, read_model
from gpu_executor.models.families.mixtral import read_top_k
from gpu_executor.models.families.navit import navit_rules, read_navit
from gpu_executor.models.families.text_model import behind
from gpu_executor.models.families.tower_rules import split_tower_qkv
from gpu_executor.models.families.towers import with_tying
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename, skip, split_experts
from gpu_executor.models.spec import Moe
from gpu_executor.models.towers.aria import AriaVision
from gpu_executor.models.towers.navit import Navit

_VISION, _PROJECTOR = r"(?:model\.)?vision_tower\.(?:vision_model\.)?", r"(?:model\.)?multi_modal_projector\."
_TEXT = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}  # fmt: skip


def inputs_first(expert: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(in, 2 out) -> gate and up, (out, in) each."""
    return expert.t().chunk(2)


def inputs_first_down(expert: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(in, out) -> (out, in)."""
    return (expert.t(),)


def _text_rules(num_experts: int) -> tuple[Rule, ...]:
    """Hub files call the experts' tensors fc1 and fc2, transformers' classes gate_up_proj and down_proj."""
    experts, names = LAYER + r"mlp\.experts\.", r"layers.\1.mlp.experts.{}."
    gate_up = tuple(f"{names}{part}.weight" for part in ("gate", "up"))
    return (
        *STEM_RULES,
        rename(LAYER + r"mlp\.router\.weight", r"layers.\1.mlp.router.weight"),
        split_experts(experts + r"(?:fc1\.weight|gate_up_proj)", gate_up, num_experts, inputs_first),
        split_experts(experts + r"(?:fc2\.weight|down_proj)", (f"{names}down.weight",), num_experts, inputs_first_down),
        rename(LAYER + r"mlp\.shared_experts\.(gate|up|down)_proj\.(weight|bias)", r"layers.\1.mlp.shared.\2.\3"),
    )


def _tower_rules(navit: Navit) -> tuple[Rule, ...]:
    attention, target = _PROJECTOR + r"cross_attn\.", "tower.projector."
    return (
        *navit_rules(_VISION, "tower.vision.", navit),
        skip(_VISION + r"post_layernorm\..+"),  # what is taken is what the last layer gives
        rename(_PROJECTOR + r"query", target + "queries"),
        rename(attention + r"layer_norm\.(weight|bias)", target + r"query_norm.\1"),
        rename(attention + r"layer_norm_kv\.(weight|bias)", target + r"patch_norm.\1"),
        rename(attention + r"([qkv])_proj\.weight", target + r"\g<1>1.weight"),
        split_tower_qkv(attention + r"multihead_attn\.in_proj_(weight|bias)", target + r"{}2.\1", navit.vit),
        rename(attention + r"multihead_attn\.out_proj\.(weight|bias)", target + r"o1.\1"),
        rename(attention + r"linear\.(weight|bias)", target + r"o2.\1"),
        rename(_PROJECTOR + r"layer_norm\.(weight|bias)", target + r"norm.\1"),
        rename(_PROJECTOR + r"feed_forward\.linear_in\.weight", target + "up.weight"),
        rename(_PROJECTOR + r"feed_forward\.linear_out\.weight", target + "down.weight"),
    )


def _read_vision(config: ConfigReader, out_size: int) -> AriaVision:
    section = config.section("vision_config")
    num_layers, layer = read_navit(section).vit.num_layers, config("vision_feature_layer", default=-1)
    if not isinstance(layer, int) or not -num_layers - 1 <= layer <= num_layers:
        raise config.wrong(("vision_feature_layer",), layer, f"the number of a hidden state of {num_layers} layers")
    queries = config("projector_patch_to_query_dict", default={1225: 128, 4900: 256})
    if not isinstance(queries, dict) or not queries:
        raise config.wrong(("projector_patch_to_query_dict",), queries, "numbers of queries by numbers of patches")
    navit = read_navit(section, layer % (num_layers + 1))
    return AriaVision(navit, tuple((int(patches), int(count)) for patches, count in queries.items()), out_size)


@architecture("AriaForConditionalGeneration", inputs=("text", "image"), examples="Aria")
def aria(config: ConfigReader, architecture: str) -> Resolved:
    text = with_tying(config, "text_config").section("text_config").with_defaults(**_TEXT)
    num_experts = text.integer("moe_num_experts", default=8)
    size = text.integer("intermediate_size")
    moe = Moe(
        num_experts=num_experts,
        top_k=read_top_k(text, num_experts, "moe_topk"),
        size=size,
        act=text.activation("hidden_act", default="silu"),
        score="softmax_topk",
        shared_size=size * text.integer("moe_num_shared_experts", default=2),
    )
    model = read_model(text, architecture, [read_attention(text)] * text.integer("num_hidden_layers"), mlp=moe)
    vision = _read_vision(config, model.decoder.hidden_size)
    rules = behind(r"(?:(?:model\.)?language_model\.)?", _text_rules(num_experts))
    return Resolved(dataclasses.replace(model, tower=vision), (*rules, *_tower_rules(vision.navit)), read_biases(text))
