"""DeepSeek-VL2 (Wu et al., 2024): SigLIP and a projector before DeepSeek-V2, with latent attention or without."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.text_model import text_model
from gpu_executor.models.families.tower_rules import timm_rules, without_batch
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import change, rename
from gpu_executor.models.towers.deepseek_vl2 import DeepseekVision
from gpu_executor.models.towers.vit_layers import VitLayers

# SigLIP SO400M of 384 pixels, whose numbers config.json leaves out in part.
_SO400M = {"width": 1152, "heads": 16, "layers": 27, "mlp_ratio": 3.7362, "image_size": 384, "patch_size": 14}


@architecture(
    "DeepseekVLV2ForCausalLM",
    inputs=("text", "image"),
    examples="DeepSeek-VL2, DeepSeek-VL2-Small, DeepSeek-VL2-Tiny",
    keys=("language_config", "vision_config", "projector_config"),
)
def deepseek_vl2(config: ConfigReader, architecture: str) -> Resolved:
    if config("tile_tag", default="2D") != "2D":
        raise config.wrong(("tile_tag",), config("tile_tag"), "2D, as in all released models")
    where = config("global_view_pos", default="head")
    if where not in ("head", "tail"):
        raise config.wrong(("global_view_pos",), where, "head or tail")
    text = text_model(config, "language_config", prefix=r"language\.", default_type="deepseek_v2")
    vision = config.section("vision_config").with_defaults(**_SO400M)
    vision.head_dim("width", "heads")
    width = vision.integer("width")
    vit = VitLayers(
        hidden_size=width,
        num_heads=vision.integer("heads"),
        mlp_size=int(width * vision.number("mlp_ratio")),
        num_layers=vision.integer("layers"),
        act="gelu_tanh",
    )
    join, sizes = _read_projector(config.section("projector_config"), width, text.spec.decoder.hidden_size)
    patch_size = vision.integer("patch_size")
    num_positions = (vision.integer("image_size") // patch_size) ** 2
    tower = DeepseekVision(vit, patch_size, num_positions, join, sizes, whole_first=where == "head")
    rules = (
        *timm_rules(r"vision\.", vit),
        change(r"vision\.pos_embed", "tower.positions", without_batch),
        rename(r"projector\.layers\.(\d+)\.(weight|bias)", r"tower.projector.\1.\2"),
        rename(r"image_newline", "tower.line_end"),
        rename(r"view_seperator", "tower.between"),  # spelt so in every checkpoint
        *text.rules,
    )
    spec = dataclasses.replace(text.spec, architecture=architecture, tower=tower)
    return Resolved(spec, rules, text.extras)


def _read_projector(projector: ConfigReader, width: int, hidden_size: int) -> tuple[int, tuple[int, ...]]:
    """How many patches it joins in each direction, and its widths."""
    kind = projector("projector_type", default="downsample_mlp_gelu")
    if kind != "downsample_mlp_gelu":
        raise projector.wrong(("projector_type",), kind, "downsample_mlp_gelu, as in all released models")
    if projector.integer("n_embed", default=hidden_size) != hidden_size:
        raise projector.wrong(("n_embed",), projector("n_embed"), f"{hidden_size:,}, the text model's width")
    join = projector.integer("downsample_ratio", default=2)
    inner = hidden_size * projector.integer("mlp_ratio", default=1)
    return join, (width * join**2, *[inner] * (projector.integer("depth", default=2) - 1), hidden_size)
