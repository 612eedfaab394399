"""MiniCPM-V (Yao et al., 2024): SigLIP and a resampler before MiniCPM (2.0), Llama 3 (2.5) or Qwen2 (2.6)."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llama import llama
from gpu_executor.models.families.minicpm import minicpm
from gpu_executor.models.families.qwen2 import qwen2
from gpu_executor.models.families.text_model import behind
from gpu_executor.models.families.tower_rules import resampler_rules, skip_layers_from, timm_rules, without_batch
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import Rule, change, rename, skip
from gpu_executor.models.towers.minicpmv import MiniCpmVision
from gpu_executor.models.towers.vit_layers import VitLayers

_TEXT_MODELS = {"2.0": minicpm, "2.5": llama, "2.6": qwen2}
_POSITIONS = {"2.0": "drawn", "2.5": "one row", "2.6": "nearest"}
# SigLIP SO400M of 384 pixels, which version 2.0 names without saying more; later ones take larger pictures.
_SO400M = {
    "hidden_size": 1152, "num_attention_heads": 16, "intermediate_size": 4304, "num_hidden_layers": 27,
    "image_size": 384, "patch_size": 14, "layer_norm_eps": 1e-6,
}  # fmt: skip
_VISION, _LAYER, _TARGET = r"vpm\.", r"vpm\.encoder\.layers\.(\d+)\.", r"tower.vit.layers.\1."


@architecture("MiniCPMV", inputs=("text", "image"), examples="MiniCPM-V 2.6, MiniCPM-Llama3-V 2.5, MiniCPM-V 2")
def minicpmv(config: ConfigReader, architecture: str) -> Resolved:
    version = _version(config)
    text = _TEXT_MODELS[version](config, architecture)
    vision = config.section("vision_config").with_defaults(**_SO400M)
    size = text.spec.decoder.hidden_size
    if size % 128:
        raise config.wrong(("hidden_size",), size, "a multiple of 128, the resampler's heads")
    tower = MiniCpmVision(
        _read_vit(config, vision, version),
        vision.integer("patch_size"),
        vision.integer("image_size") // vision.integer("patch_size"),
        _POSITIONS[version],
        config.integer("query_num", default=64),
        query_positions=version == "2.0",
        output_size=size,
    )
    rules = (*_rules(tower, version), *behind(r"llm\.", text.rules))
    return Resolved(dataclasses.replace(text.spec, tower=tower), rules, text.extras)


def _version(config: ConfigReader) -> str:
    """The first releases do not say theirs; 2.0 is the one of MiniCPM's width."""
    first = config.integer("hidden_size") == 2304 and config("query_num", default=64) == 64
    version = str(config("version", default="2.0" if first else "2.5"))
    if version not in _TEXT_MODELS:
        raise config.wrong(("version",), version, f"one of {', '.join(_TEXT_MODELS)}")
    return version


def _read_vit(config: ConfigReader, vision: ConfigReader, version: str) -> VitLayers:
    vision.head_dim("hidden_size", "num_attention_heads")
    return VitLayers(
        hidden_size=vision.integer("hidden_size"),
        num_heads=vision.integer("num_attention_heads"),
        mlp_size=vision.integer("intermediate_size"),
        num_layers=vision.integer("num_hidden_layers")
        - config.flag("drop_vision_last_layer", default=version == "2.0"),
        act=vision.activation("hidden_act", default="gelu" if version == "2.0" else "gelu_pytorch_tanh"),
        eps=vision.number("layer_norm_eps"),
    )


def _rules(tower: MiniCpmVision, version: str) -> tuple[Rule, ...]:
    resampler = resampler_rules(r"resampler\.", r"resampler\.", tower.output_size)
    if version == "2.0":
        return (
            *timm_rules(_VISION, tower.vit),
            change(_VISION + r"pos_embed", "tower.positions", without_batch),
            *resampler,
            rename(r"resampler\.pos_embed", "tower.resampler.query_positions"),
        )
    return (
        skip_layers_from(_VISION + r"encoder\.layers\.", tower.vit.num_layers),
        rename(_VISION + r"embeddings\.patch_embedding\.(weight|bias)", r"tower.patch.\1"),
        rename(_VISION + r"embeddings\.position_embedding\.weight", "tower.positions"),
        rename(_LAYER + r"layer_norm([12])\.(weight|bias)", _TARGET + r"norm\2.\3"),
        rename(_LAYER + r"self_attn\.([qkv])_proj\.(weight|bias)", _TARGET + r"attn.\2.\3"),
        rename(_LAYER + r"self_attn\.out_proj\.(weight|bias)", _TARGET + r"attn.o.\2"),
        rename(_LAYER + r"mlp\.fc1\.(weight|bias)", _TARGET + r"mlp.up.\2"),
        rename(_LAYER + r"mlp\.fc2\.(weight|bias)", _TARGET + r"mlp.down.\2"),
        rename(_VISION + r"post_layernorm\.(weight|bias)", r"tower.norm.\1"),
        *resampler,
        skip(r"resampler\.pos_embed"),  # of a fixed size; computed here
    )
