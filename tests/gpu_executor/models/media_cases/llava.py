"""Llava with each of its towers, as released checkpoints are configured."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import BASE, Case
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint

TEXT = BASE | {"model_type": "llama", "vocab_size": 320}
QWEN2 = BASE | {"model_type": "qwen2", "vocab_size": 320, "tie_word_embeddings": True}
IMAGE, VIDEO = "<image>", "<video>"
IMAGE_ID = 3  # the first of a checkpoint's own control tokens
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 7, "projection_dim": 16,
}  # fmt: skip
SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 7, "vision_use_head": False,
}  # fmt: skip
PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 64, "patch_size": 8, "hidden_act": "silu", "head_dim": 16, "rope_theta": 10000.0,
}  # fmt: skip
CLIP_FILES: dict[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True, "do_center_crop": True,
        "do_rescale": True, "do_normalize": True, "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28},
        "resample": 3, "rescale_factor": 0.00392156862745098, "processor_class": "LlavaProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "processor_config.json": {
        "processor_class": "LlavaProcessor", "patch_size": 7, "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1, "image_token": IMAGE,
    },
}  # fmt: skip
SIGLIP_FILES: dict[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "SiglipImageProcessor", "do_convert_rgb": None, "do_resize": True, "do_rescale": True,
        "do_normalize": True, "size": {"height": 28, "width": 28}, "resample": 3, "rescale_factor": 0.00392156862745098,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "processor_class": "LlavaProcessor",
    },
    "processor_config.json": {
        "processor_class": "LlavaProcessor", "patch_size": 7, "vision_feature_select_strategy": "full", "image_token": IMAGE,
    },
}  # fmt: skip
PIXTRAL_FILES: dict[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "PixtralImageProcessor", "do_convert_rgb": True, "do_resize": True, "do_rescale": True,
        "do_normalize": True, "size": {"longest_edge": 60}, "patch_size": {"height": 8, "width": 8}, "resample": 3,
        "rescale_factor": 0.00392156862745098, "processor_class": "PixtralProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "processor_config.json": {
        "processor_class": "PixtralProcessor", "patch_size": 8, "image_token": "[IMG]", "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
    },
}  # fmt: skip


def checkpoint(
    name: str,
    text: dict[str, Any],
    vision: dict[str, Any],
    files: dict[str, Any],
    *tokens: str,
    architecture: str = "LlavaForConditionalGeneration",
    model_type: str = "llava",
    **config: Any,
) -> MediaCheckpoint:
    """A checkpoint of Llava's kind."""
    config = {
        "model_type": model_type, "text_config": text, "vision_config": vision, "image_token_index": IMAGE_ID,
        "projector_hidden_act": "gelu", **config,
    }  # fmt: skip
    return MediaCheckpoint(Case(name, architecture, config, attention="sdpa"), files, tokens)


LLAVA_CLIP = checkpoint(
    "llava-clip", TEXT, CLIP, CLIP_FILES, IMAGE, vision_feature_layer=-2, vision_feature_select_strategy="default"
)
LLAVA_SIGLIP = checkpoint(
    "llava-siglip", QWEN2, SIGLIP, SIGLIP_FILES, IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full"
)
LLAVA_LAYERS = checkpoint(
    "llava-of-several-layers", TEXT, CLIP, CLIP_FILES, IMAGE, vision_feature_layer=[-1, 0, -2],
    vision_feature_select_strategy="default", multimodal_projector_bias=False,
)  # fmt: skip
PIXTRAL_HF = checkpoint(
    "pixtral-hf", TEXT | {"model_type": "mistral", "head_dim": 16, "sliding_window": None}, PIXTRAL, PIXTRAL_FILES,
    "[IMG]", "[IMG_BREAK]", "[IMG_END]", vision_feature_layer=-1, vision_feature_select_strategy="full",
)  # fmt: skip
