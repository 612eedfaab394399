"""LLaVA-NeXT (Liu et al., 2024), LLaVA-NeXT-Video (Zhang et al., 2024), LLaVA-OneVision (Li et al., 2024): Llava in tiles."""

from __future__ import annotations

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.llava import PROJECTOR, read_projector, read_text, read_vision, with_tower
from gpu_executor.models.families.vision_section import Vision
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.towers.clip_vit import ClipVit
from gpu_executor.models.towers.llava_next import FramePooling, LlavaNext

_NEWLINE = rename(r"(?:model\.)?image_newline", "tower.newline")
_POOL = rename(r"(?:model\.)?vision_resampler\.pool\.(weight|bias)", r"tower.pool.\1", optional=True)
_POOLINGS = ("average", "max", "conv")


@architecture(
    "LlavaNextForConditionalGeneration",
    tasks=("generate", "embed"),
    inputs=("text", "image"),
    examples="LLaVA 1.6, LLaVA-NeXT, E5-V",
)
def llava_next(config: ConfigReader, architecture: str) -> Resolved:
    return _with_tiles(config, architecture, read_vision(config), None)


@architecture("LlavaNextVideoForConditionalGeneration", inputs=("text", "image", "video"), examples="LLaVA-NeXT-Video")
def llava_next_video(config: ConfigReader, architecture: str) -> Resolved:
    kind = config("spatial_pool_mode", default="average")
    if kind not in _POOLINGS:
        raise config.wrong(("spatial_pool_mode",), kind, f"one of {', '.join(_POOLINGS)}")
    pooling = FramePooling(kind, config.integer("spatial_pool_stride", default=2))
    return _with_tiles(config, architecture, read_vision(config), pooling)


@architecture("LlavaOnevisionForConditionalGeneration", inputs=("text", "image", "video"), examples="LLaVA-OneVision")
def llava_onevision(config: ConfigReader, architecture: str) -> Resolved:
    vision = read_vision(config, layer=-1, strategy="full", default_type="siglip_vision_model")
    return _with_tiles(config, architecture, vision, FramePooling("bilinear"), default_text="qwen2")


def _with_tiles(
    config: ConfigReader, architecture: str, vision: Vision, frames: FramePooling | None, default_text: str = "llama"
) -> Resolved:
    if not isinstance(vision, ClipVit):
        raise config.section("vision_config").wrong(
            ("model_type",), "pixtral", "clip_vision_model or siglip_vision_model"
        )
    text = read_text(config, default_type=default_text)
    projector = read_projector(config, vision, text.spec.decoder.hidden_size)
    return with_tower(text, architecture, LlavaNext(vision, projector, frames), vision, *PROJECTOR, _NEWLINE, _POOL)
