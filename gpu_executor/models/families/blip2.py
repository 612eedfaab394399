"""BLIP-2 (Li et al., 2023): OPT that sees through EVA's vision transformer and a Q-Former."""

from __future__ import annotations

import dataclasses

import torch

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.text_model import text_model
from gpu_executor.models.families.tower_rules import split_tower_qkv
from gpu_executor.models.families.towers import read_activation, with_tying
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename, skip
from gpu_executor.models.towers.blip2 import Blip2Vision, QFormer
from gpu_executor.models.towers.vit_layers import VitLayers

_VISION, _BLOCK = r"vision_model\.", r"vision_model\.encoder\.layers\.(\d+)\."
_LAYER = r"qformer\.encoder\.layer\.(\d+)\."
# What transformers' config classes mean where a section does not say.
_OPT = {
    "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072, "num_attention_heads": 12,
    "max_position_embeddings": 2048,
}  # fmt: skip
_VIT = {
    "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16, "image_size": 224,
    "patch_size": 14, "layer_norm_eps": 1e-6,
}  # fmt: skip
_QFORMER = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "cross_attention_frequency": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip


def without_batch(tensor: torch.Tensor) -> torch.Tensor:
    """(1, rows, D) -> (rows, D)."""
    return tensor[0]


def one_row(tensor: torch.Tensor) -> torch.Tensor:
    """(1, 1, D) -> (D)."""
    return tensor.flatten()


def _attention_rules(name: str, target: str) -> tuple[Rule, ...]:
    """One of a Q-Former layer's two attentions."""
    source, mine = _LAYER + name, rf"tower.qformer.layers.\1.{target}."
    return (
        *(rename(rf"{source}\.attention\.{word}\.(weight|bias)", rf"{mine}{word[0]}.\2") for word in ("query", "key", "value")),
        rename(source + r"\.output\.dense\.(weight|bias)", mine + r"o.\2"),
        rename(source + r"\.output\.LayerNorm\.(weight|bias)", mine + r"norm.\2"),
    )  # fmt: skip


def _tower_rules(vit: VitLayers) -> tuple[Rule, ...]:
    block, layer = r"tower.vit.layers.\1.", r"tower.qformer.layers.\1."
    return (
        change(_VISION + r"embeddings\.class_embedding", "tower.class_embedding", one_row),
        change(_VISION + r"embeddings\.position_embedding", "tower.positions", without_batch),
        rename(_VISION + r"embeddings\.patch_embedding\.(weight|bias)", r"tower.patch.\1"),
        rename(_BLOCK + r"layer_norm([12])\.(weight|bias)", block + r"norm\2.\3"),
        split_tower_qkv(_BLOCK + r"self_attn\.qkv\.(weight|bias)", block + r"attn.{}.\2", vit),
        rename(_BLOCK + r"self_attn\.projection\.(weight|bias)", block + r"attn.o.\2"),
        rename(_BLOCK + r"mlp\.fc1\.(weight|bias)", block + r"mlp.up.\2"),
        rename(_BLOCK + r"mlp\.fc2\.(weight|bias)", block + r"mlp.down.\2"),
        rename(_VISION + r"post_layernorm\.(weight|bias)", r"tower.norm.\1"),
        change(r"query_tokens", "tower.qformer.queries", without_batch),
        rename(r"qformer\.layernorm\.(weight|bias)", r"tower.qformer.norm.\1"),
        *_attention_rules("attention", "attn"),
        *_attention_rules("crossattention", "cross"),
        rename(_LAYER + r"intermediate_query\.dense\.(weight|bias)", layer + r"up.\2"),
        rename(_LAYER + r"output_query\.dense\.(weight|bias)", layer + r"down.\2"),
        rename(_LAYER + r"output_query\.LayerNorm\.(weight|bias)", layer + r"norm.\2"),
        skip(
            r"qformer\.(?:embeddings|encoder\.layer\.\d+\.(?:intermediate|output))\..+"
        ),  # for text, which it never sees
        rename(r"language_projection\.(weight|bias)", r"tower.projector.\1"),
    )


def _read_vision(config: ConfigReader, out_size: int) -> Blip2Vision:
    vision = config.section("vision_config").with_defaults(**_VIT)
    former = config.section("qformer_config").with_defaults(**_QFORMER)
    vision.head_dim("hidden_size", "num_attention_heads")  # must be whole
    former.head_dim("hidden_size", "num_attention_heads")
    vit = VitLayers(
        hidden_size=vision.integer("hidden_size"),
        num_heads=vision.integer("num_attention_heads"),
        mlp_size=vision.integer("intermediate_size"),
        num_layers=vision.integer("num_hidden_layers"),
        act=read_activation(vision, "hidden_act", default="gelu"),
        eps=vision.number("layer_norm_eps"),
        qkv_bias=vision.flag("qkv_bias", default=True),
    )
    qformer = QFormer(
        num_queries=config.integer("num_query_tokens", default=32),
        hidden_size=former.integer("hidden_size"),
        num_heads=former.integer("num_attention_heads"),
        mlp_size=former.integer("intermediate_size"),
        num_layers=former.integer("num_hidden_layers"),
        cross_frequency=former.integer("cross_attention_frequency"),
        act=read_activation(former, "hidden_act", default="gelu"),
        eps=former.number("layer_norm_eps"),
        patch_dim=vit.hidden_size,
    )
    return Blip2Vision(vit, vision.integer("image_size"), vision.integer("patch_size"), qformer, out_size)


@architecture("Blip2ForConditionalGeneration", inputs=("text", "image"), examples="BLIP-2 OPT")
def blip2(config: ConfigReader, architecture: str) -> Resolved:
    text = with_tying(config, "text_config").section("text_config")
    if text("model_type", default="opt") == "opt":
        text = text.with_defaults(**_OPT)
    whole = config.updated({"text_config": text.data})
    resolved = text_model(whole, "text_config", prefix=r"language_model\.", default_type="opt")
    vision = _read_vision(config, resolved.spec.decoder.hidden_size)
    spec = dataclasses.replace(resolved.spec, architecture=architecture, tower=vision)
    return dataclasses.replace(resolved, spec=spec, rules=(*resolved.rules, *_tower_rules(vision.vit)))
