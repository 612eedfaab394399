"""The `visual` part of Qwen-VL (Bai et al., 2023), whose text model is Qwen; qwen.py puts them together."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.tower_rules import resampler_rules, split_tower_qkv
from gpu_executor.models.registry import Resolved
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.towers.qwen_vl import QwenVision
from gpu_executor.models.towers.vit_layers import VitLayers

_VISUAL = r"(?:transformer\.)?visual\."
_LAYER, _TARGET = _VISUAL + r"transformer\.resblocks\.(\d+)\.", r"tower.vit.layers.\1."


def with_visual(config: ConfigReader, text: Resolved) -> Resolved:
    """The text model with the tower of config.json's `visual`."""
    visual = config.section("visual")
    size = text.spec.decoder.hidden_size
    if visual.integer("output_dim", default=size) != size or size % 128:
        raise visual.wrong(("output_dim",), visual("output_dim", default=size), f"{size:,}, a multiple of 128")
    visual.head_dim("width", "heads")
    vit = VitLayers(
        hidden_size=visual.integer("width"),
        num_heads=visual.integer("heads"),
        mlp_size=int(visual.integer("width") * visual.number("mlp_ratio", default=4.0)),
        num_layers=visual.integer("layers"),
    )
    tower = QwenVision(vit, visual.integer("patch_size"), visual.integer("n_queries", default=256), size)
    spec = dataclasses.replace(text.spec, tower=tower)
    return Resolved(spec, (*_rules(tower), *text.rules), text.extras)


def _rules(tower: QwenVision) -> tuple[Rule, ...]:
    return (
        rename(_VISUAL + r"conv1\.weight", "tower.patch.weight"),
        rename(_VISUAL + r"positional_embedding", "tower.positions"),
        rename(_VISUAL + r"ln_pre\.(weight|bias)", r"tower.pre_norm.\1"),
        rename(_LAYER + r"ln_([12])\.(weight|bias)", _TARGET + r"norm\2.\3"),
        split_tower_qkv(_LAYER + r"attn\.in_proj\.(weight|bias)", _TARGET + r"attn.{}.\2", tower.vit, interleaved=True),
        rename(_LAYER + r"attn\.out_proj\.(weight|bias)", _TARGET + r"attn.o.\2"),
        rename(_LAYER + r"mlp\.c_fc\.(weight|bias)", _TARGET + r"mlp.up.\2"),
        rename(_LAYER + r"mlp\.c_proj\.(weight|bias)", _TARGET + r"mlp.down.\2"),
        *resampler_rules(_VISUAL + r"attn_pool\.", _VISUAL, tower.output_size),
        rename(_VISUAL + r"attn_pool\.pos_embed", "tower.resampler.query_positions"),
    )
