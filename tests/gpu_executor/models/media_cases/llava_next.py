"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision, as released checkpoints are configured."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.media_cases.llava import (
    CLIP,
    CLIP_FILES,
    IMAGE,
    IMAGE_ID,
    QWEN2,
    SIGLIP,
    SIGLIP_FILES,
    TEXT,
    VIDEO,
    checkpoint,
)
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint

PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
WIDE_PINPOINTS = [[height, width] for height in range(28, 113, 28) for width in range(28, 113, 28)]


def _files(files: dict[str, Any], kind: str, pinpoints: list[list[int]], **processor: Any) -> dict[str, Any]:
    settings = {"image_processor_type": kind, "image_grid_pinpoints": pinpoints, "do_pad": True}
    return {
        "preprocessor_config.json": files["preprocessor_config.json"] | settings,
        "processor_config.json": files["processor_config.json"] | processor,
    }


LLAVA_NEXT = checkpoint(
    "llava-next", TEXT, CLIP, _files(CLIP_FILES, "LlavaNextImageProcessor", PINPOINTS, processor_class="LlavaNextProcessor"),
    IMAGE, architecture="LlavaNextForConditionalGeneration", model_type="llava_next", image_grid_pinpoints=PINPOINTS,
    vision_feature_layer=-2, vision_feature_select_strategy="default", use_image_newline_parameter=True,
)  # fmt: skip


def next_video(name: str, **config: Any) -> MediaCheckpoint:
    """LLaVA-NeXT-Video with these keys."""
    return checkpoint(
        name, TEXT, CLIP, _files(CLIP_FILES, "LlavaNextImageProcessor", PINPOINTS), IMAGE, VIDEO,
        architecture="LlavaNextVideoForConditionalGeneration", model_type="llava_next_video",
        image_grid_pinpoints=PINPOINTS, video_token_index=IMAGE_ID + 1, vision_feature_layer=-2,
        vision_feature_select_strategy="default", **config,
    )  # fmt: skip


LLAVA_NEXT_VIDEO = next_video("llava-next-video", spatial_pool_mode="average", spatial_pool_stride=2)
LLAVA_NEXT_VIDEO_MAX = next_video("llava-next-video-max", spatial_pool_mode="max", spatial_pool_stride=2)
LLAVA_NEXT_VIDEO_CONV = next_video("llava-next-video-conv", spatial_pool_mode="conv", spatial_pool_stride=2)
LLAVA_ONEVISION = checkpoint(
    "llava-onevision", QWEN2, SIGLIP | {"image_size": 28, "patch_size": 9},
    _files(SIGLIP_FILES, "LlavaOnevisionImageProcessor", WIDE_PINPOINTS), IMAGE, VIDEO,
    architecture="LlavaOnevisionForConditionalGeneration", model_type="llava_onevision",
    image_grid_pinpoints=WIDE_PINPOINTS, video_token_index=IMAGE_ID + 1, vision_feature_layer=-1,
    vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_2",
)  # fmt: skip
