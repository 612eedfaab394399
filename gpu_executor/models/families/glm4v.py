"""The vision part of GLM-4V (GLM, 2024), whose text model is ChatGLM's; chatglm.py puts them together."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.tower_rules import split_tower_qkv, without_batch
from gpu_executor.models.registry import Resolved
from gpu_executor.models.rules import Rule, change, rename
from gpu_executor.models.towers.glm4v import Glm4Vision
from gpu_executor.models.towers.vit_layers import VitLayers

_VISION = r"(?:transformer\.)?vision\."
_LAYER, _TARGET = _VISION + r"transformer\.layers\.(\d+)\.", r"tower.vit.layers.\1."
_PROJECTOR = _VISION + r"linear_proj\."


def with_vision(config: ConfigReader, text: Resolved) -> Resolved:
    """The text model with the tower of config.json's `vision_config`."""
    vision = config.section("vision_config")
    vision.head_dim("hidden_size", "num_heads")
    side, patch_size = vision.integer("image_size"), vision.integer("patch_size")
    num_positions = vision.integer("num_positions", default=(side // patch_size) ** 2 + 1)
    if num_positions != (side // patch_size) ** 2 + 1:
        raise vision.wrong(("num_positions",), num_positions, "one for each patch, and one")
    tower = Glm4Vision(
        VitLayers(
            hidden_size=vision.integer("hidden_size"),
            num_heads=vision.integer("num_heads"),
            mlp_size=vision.integer("intermediate_size"),
            num_layers=vision.integer("num_hidden_layers"),
            act=vision.activation("hidden_act", default="gelu"),
            eps=vision.number("layer_norm_eps", default=1e-6),
            post_norm=True,
        ),
        patch_size,
        num_positions,
        mlp_size=config.integer("ffn_hidden_size"),
        output_size=text.spec.decoder.hidden_size,
        divisor=vision.number("scaling_factor", default=1.0),
    )
    spec = dataclasses.replace(text.spec, tower=tower)
    return Resolved(spec, (*_rules(tower.vit), *text.rules), text.extras)


def _rules(vit: VitLayers) -> tuple[Rule, ...]:
    return (
        rename(_VISION + r"patch_embedding\.proj\.(weight|bias)", r"tower.patch.\1"),
        rename(_VISION + r"patch_embedding\.cls_embedding", "tower.class_embedding"),
        rename(_VISION + r"patch_embedding\.position_embedding\.weight", "tower.positions"),
        rename(_LAYER + r"input_layernorm\.(weight|bias)", _TARGET + r"norm1.\2"),
        rename(_LAYER + r"post_attention_layernorm\.(weight|bias)", _TARGET + r"norm2.\2"),
        split_tower_qkv(_LAYER + r"attention\.query_key_value\.(weight|bias)", _TARGET + r"attn.{}.\2", vit),
        rename(_LAYER + r"attention\.dense\.(weight|bias)", _TARGET + r"attn.o.\2"),
        rename(_LAYER + r"mlp\.fc1\.(weight|bias)", _TARGET + r"mlp.up.\2"),
        rename(_LAYER + r"mlp\.fc2\.(weight|bias)", _TARGET + r"mlp.down.\2"),
        rename(_VISION + r"conv\.(weight|bias)", r"tower.join.\1"),
        rename(_PROJECTOR + r"linear_proj\.weight", "tower.proj.weight"),
        rename(_PROJECTOR + r"norm1\.(weight|bias)", r"tower.norm.\1"),
        rename(_PROJECTOR + r"gate_proj\.weight", "tower.gate.weight"),
        rename(_PROJECTOR + r"dense_h_to_4h\.weight", "tower.up.weight"),
        rename(_PROJECTOR + r"dense_4h_to_h\.weight", "tower.down.weight"),
        change(_VISION + r"boi", "tower.begin", without_batch),
        change(_VISION + r"eoi", "tower.end", without_batch),
    )
