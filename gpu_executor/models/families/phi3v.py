"""Phi-3-vision and Phi-3.5-vision (Abdin et al., 2024): CLIP before Phi-3; VLM2Vec (Jiang et al., 2024) embeds with it."""

from __future__ import annotations

import dataclasses

import torch

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.phi import phi3
from gpu_executor.models.families.vision_section import read_vision_section, vision_rules
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename
from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.phi3v import Phi3Vision

_TOWER = r"model\.vision_embed_tokens\."
# CLIP ViT-L/14 of 336 pixels, which config.json has by name alone.
_CLIP_LARGE = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336,
    "patch_size": 14, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip


@architecture(
    "Phi3VForCausalLM",
    tasks=("generate", "embed"),
    inputs=("text", "image"),
    examples="Phi-3.5-vision, Phi-3-vision, VLM2Vec",
)
def phi3v(config: ConfigReader, architecture: str) -> Resolved:
    text = phi3(config, architecture)
    images = config.section("img_processor")
    section = images.section("vision_config").with_defaults(**_CLIP_LARGE)
    layer = images("layer_idx", default=-2)
    if not isinstance(layer, int):
        raise images.wrong(("layer_idx",), layer, "a layer's number")
    vision = read_vision_section(section, (layer,), drops_first=True)
    tower = Phi3Vision(vision, text.spec.decoder.hidden_size)
    rules = (*_rules(vision), *(rule for rule in text.rules if rule.targets != ("embed.weight",)))
    return Resolved(dataclasses.replace(text.spec, tower=tower), rules, text.extras)


def _rules(vision: ClipVit) -> tuple[Rule, ...]:
    return (
        rename(r"model\.(?:embed_tokens|vision_embed_tokens\.wte)\.weight", "embed.weight"),  # one tensor of two names
        *vision_rules(_TOWER + r"img_processor\.vision_model\.", "tower.vision.", vision),
        change(_TOWER + r"glb_GN", "tower.between", torch.flatten),
        change(_TOWER + r"sub_GN", "tower.row_end", torch.flatten),
        rename(_TOWER + r"img_projection\.0\.(weight|bias)", r"tower.up.\1"),
        rename(_TOWER + r"img_projection\.2\.(weight|bias)", r"tower.down.\1"),
    )
