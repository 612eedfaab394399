"""InternVL (Chen et al., 2023, 2024), H2OVL (Galib et al., 2024) and NVLM-D (Dai et al., 2024): InternViT before a text model."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.text_model import text_model
from gpu_executor.models.families.tower_rules import skip_layers_from, split_tower_qkv
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, rename
from gpu_executor.models.towers.internvit import InternVit
from gpu_executor.models.towers.vit_layers import VitLayers

_VISION = r"vision_model\."
_LAYER, _TARGET = _VISION + r"encoder\.layers\.(\d+)\.", r"tower.vit.layers.\1."
# Where vision_config leaves something out, it is that of the first, largest tower.
_DEFAULTS = {
    "hidden_size": 3200, "num_attention_heads": 25, "intermediate_size": 12800, "num_hidden_layers": 48,
    "layer_norm_eps": 1e-6, "patch_size": 14, "image_size": 224,
}  # fmt: skip


@architecture("InternVLChatModel", inputs=("text", "image"), examples="InternVL3, InternVL2.5, InternVL2, InternVL 1.5")
@architecture("H2OVLChatModel", inputs=("text", "image"), examples="H2OVL Mississippi 0.8B, H2OVL Mississippi 2B")
def internvl(config: ConfigReader, architecture: str) -> Resolved:
    text = text_model(config, "llm_config", prefix=r"language_model\.")
    return _with_tower(config, architecture, text, text.spec.decoder.hidden_size, bias=True)


@architecture("NVLM_D_Model", inputs=("text", "image"), examples="NVLM-D 72B")
def nvlm(config: ConfigReader, architecture: str) -> Resolved:
    text = text_model(config, "text_config", "llm_config", prefix=r"language_model\.")
    size = config.section("text_config", "llm_config").integer("intermediate_size")
    return _with_tower(config, architecture, text, size, bias=False)


def _with_tower(
    config: ConfigReader, architecture: str, text: Resolved, projector_size: int, *, bias: bool
) -> Resolved:
    vision = config.section("vision_config").with_defaults(**_DEFAULTS)
    vit = _read_vit(config, vision)
    patch_size = vision.integer("patch_size")
    ratio = config.number("downsample_ratio", default=0.5)
    side = config.integer("force_image_size", default=vision.integer("image_size")) // patch_size
    join = round(1 / ratio)
    if join * ratio != 1 or side % join:
        raise config.wrong(("downsample_ratio",), ratio, f"one over a divisor of the {side} patches of a side")
    tower = InternVit(
        vit,
        patch_size,
        num_positions=(vision.integer("image_size") // patch_size) ** 2,
        join=join,
        rows_swapped=config("ps_version", default="v1") == "v1",
        projector_size=projector_size,
        projector_bias=bias,
        output_size=text.spec.decoder.hidden_size,
    )
    spec = dataclasses.replace(text.spec, architecture=architecture, tower=tower)
    return Resolved(spec, (*_rules(vit), *text.rules), text.extras)


def _read_vit(config: ConfigReader, vision: ConfigReader) -> VitLayers:
    """The layers of the tower, as far as their output is used."""
    kind, stored = vision("norm_type", default="rms_norm"), vision.integer("num_hidden_layers")
    if kind not in ("layer_norm", "rms_norm"):
        raise vision.wrong(("norm_type",), kind, "layer_norm or rms_norm")
    select = config("select_layer", default=-1)
    used = select if isinstance(select, int) and select >= 0 else stored + 1 + select
    if not 0 <= used <= stored:
        raise config.wrong(("select_layer",), select, f"one of the {stored} layers")
    vision.head_dim("hidden_size", "num_attention_heads")
    return VitLayers(
        hidden_size=vision.integer("hidden_size"),
        num_heads=vision.integer("num_attention_heads"),
        mlp_size=vision.integer("intermediate_size"),
        num_layers=used,
        act=vision.activation("hidden_act", default="gelu"),
        norm="layer" if kind == "layer_norm" else "rms",
        eps=vision.number("layer_norm_eps"),
        qkv_bias=vision.flag("qkv_bias", default=False),
        qk_norm=vision.flag("qk_normalization", default=True),
        branch_scales=True,
    )


def _rules(vit: VitLayers) -> tuple[Rule, ...]:
    return (
        skip_layers_from(_VISION + r"encoder\.layers\.", vit.num_layers),
        rename(_VISION + r"embeddings\.class_embedding", "tower.class_embedding"),
        rename(_VISION + r"embeddings\.patch_embedding\.(weight|bias)", r"tower.patch.\1"),
        rename(_VISION + r"embeddings\.position_embedding", "tower.positions"),
        rename(_LAYER + r"norm([12])\.(weight|bias)", _TARGET + r"norm\2.\3"),
        rename(_LAYER + r"ls([12])", _TARGET + r"scale\2"),
        split_tower_qkv(_LAYER + r"attn\.qkv\.(weight|bias)", _TARGET + r"attn.{}.\2", vit),
        rename(_LAYER + r"attn\.([qk])_norm\.weight", _TARGET + r"attn.\2_norm.weight", optional=True),
        rename(_LAYER + r"attn\.proj\.(weight|bias)", _TARGET + r"attn.o.\2"),
        rename(_LAYER + r"mlp\.fc1\.(weight|bias)", _TARGET + r"mlp.up.\2"),
        rename(_LAYER + r"mlp\.fc2\.(weight|bias)", _TARGET + r"mlp.down.\2"),
        rename(r"mlp1\.0\.(weight|bias)", r"tower.norm.\1"),
        rename(r"mlp1\.1\.(weight|bias)", r"tower.up.\1"),
        rename(r"mlp1\.3\.(weight|bias)", r"tower.down.\1"),
    )
