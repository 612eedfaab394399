"""Qwen2-VL (Wang et al., 2024): Qwen2 with rotary positions in three axes, behind a ViT over patches of pictures and videos."""

from __future__ import annotations

import dataclasses

import torch

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.text_model import text_model
from gpu_executor.models.families.tower_rules import split_tower_qkv
from gpu_executor.models.families.towers import read_activation, with_tying
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename
from gpu_executor.models.towers.qwen2_vl import Qwen2VLVision
from gpu_executor.models.towers.vit_layers import VitLayers

_NUM_AXES = 3  # time, height and width
_VISUAL, _BLOCK = r"(?:model\.)?visual\.", r"(?:model\.)?visual\.blocks\.(\d+)\."


def flat_patches(weight: torch.Tensor) -> torch.Tensor:
    """A convolution whose kernel is a whole patch (D, C, frames, rows, columns) as a matrix (D, numbers of a patch)."""
    return weight.flatten(1)


def _tower_rules(vit: VitLayers) -> tuple[Rule, ...]:
    target = r"tower.vit.layers.\1."
    return (
        change(_VISUAL + r"patch_embed\.proj\.weight", "tower.patches.weight", flat_patches),
        rename(_BLOCK + r"(norm[12])\.(weight|bias)", target + r"\2.\3"),
        split_tower_qkv(_BLOCK + r"attn\.qkv\.(weight|bias)", target + r"attn.{}.\2", vit),
        rename(_BLOCK + r"attn\.proj\.(weight|bias)", target + r"attn.o.\2"),
        rename(_BLOCK + r"mlp\.fc1\.(weight|bias)", target + r"mlp.up.\2"),
        rename(_BLOCK + r"mlp\.fc2\.(weight|bias)", target + r"mlp.down.\2"),
        rename(_VISUAL + r"merger\.ln_q\.(weight|bias)", r"tower.norm.\1"),
        rename(_VISUAL + r"merger\.mlp\.0\.(weight|bias)", r"tower.merger1.\1"),
        rename(_VISUAL + r"merger\.mlp\.2\.(weight|bias)", r"tower.merger2.\1"),
    )


def _read_vision(config: ConfigReader, out_size: int) -> Qwen2VLVision:
    hidden_size, num_heads = config.integer("embed_dim", default=1280), config.integer("num_heads", default=16)
    if hidden_size % (4 * num_heads):
        raise config.wrong(("embed_dim",), hidden_size, f"{num_heads} heads of a multiple of 4")
    vit = VitLayers(
        hidden_size=hidden_size,
        num_heads=num_heads,
        mlp_size=int(hidden_size * config.number("mlp_ratio", default=4.0)),
        num_layers=config.integer("depth", default=32),
        act=read_activation(config, "hidden_act", default="quick_gelu"),
    )
    return Qwen2VLVision(
        vit,
        out_size=out_size,
        patch_size=config.integer("patch_size", default=14),
        temporal_patch_size=config.integer("temporal_patch_size", default=2),
        merge_size=config.integer("spatial_merge_size", default=2),
    )


@architecture(
    "Qwen2VLForConditionalGeneration",
    tasks=("generate", "embed"),
    inputs=("text", "image", "video"),
    examples="Qwen2-VL, DSE-Qwen2",
)
def qwen2_vl(config: ConfigReader, architecture: str) -> Resolved:
    if not config.has("text_config"):  # hub files have the text's keys beside vision_config
        config = config.updated({"text_config": config.data})
    text = with_tying(config, "text_config").section("text_config").with_defaults(rms_norm_eps=1e-5, rope_theta=1e6)
    resolved = text_model(
        config.updated({"text_config": text.data}),
        "text_config",
        prefix=r"(?:(?:model\.)?language_model\.)?",
        architecture="Qwen2ForCausalLM",
    )
    rope = resolved.spec.decoder.layers[0].mixer.positions
    if len(rope.sections) != _NUM_AXES:
        raise text.wrong(
            ("rope_parameters", "rope_scaling"), list(rope.sections), "a rope with an mrope_section of 3 axes"
        )
    vision = _read_vision(config.section("vision_config"), resolved.spec.decoder.hidden_size)
    spec = dataclasses.replace(resolved.spec, architecture=architecture, tower=vision)
    return dataclasses.replace(resolved, spec=spec, rules=(*resolved.rules, *_tower_rules(vision.vit)))
