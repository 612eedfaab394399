"""Idefics3 and Aria as they are released, with small tiles and few layers."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import BASE, Case
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint

VISION = {
    "model_type": "idefics3_vision", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 7, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 0.00392156862745098}
IDEFICS3_FILES: dict[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "Idefics3ImageProcessor", "do_convert_rgb": True, "do_image_splitting": True,
        "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True, "max_image_size": {"longest_edge": 28},
        "size": {"longest_edge": 112}, "resample": 1, "processor_class": "Idefics3Processor", **HALVES,
    },
    "processor_config.json": {"image_seq_len": 4, "processor_class": "Idefics3Processor"},
}  # fmt: skip
IDEFICS3 = MediaCheckpoint(
    Case(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        {
            "model_type": "idefics3", "image_token_id": 3, "scale_factor": 2, "tie_word_embeddings": False,
            "vision_config": VISION,
            "text_config": BASE | {
                "model_type": "llama", "vocab_size": 300, "max_position_embeddings": 1024,
                "architectures": ["VLlama3ForCausalLM"],
            },
        },
    ),
    IDEFICS3_FILES,
    ("<image>", "<fake_token_around_image>", "<end_of_utterance>"),
)  # fmt: skip
ARIA_FILES: dict[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "AriaImageProcessor", "do_convert_rgb": True, "do_normalize": True, "max_image_size": 490,
        "min_image_size": 336, "resample": 3, "split_image": True, "processor_class": "AriaProcessor", **HALVES,
    },
    "processor_config.json": {"size_conversion": {"490": 4, "980": 6}, "processor_class": "AriaProcessor"},
}  # fmt: skip
ARIA = MediaCheckpoint(
    Case(
        "aria",
        "AriaForConditionalGeneration",
        {
            "model_type": "aria", "image_token_index": 3, "tie_word_embeddings": False, "vision_feature_layer": -1,
            "projector_patch_to_query_dict": {"25": 4, "100": 6},
            "vision_config": VISION | {"image_size": 980, "patch_size": 98},
            "text_config": BASE | {
                "model_type": "aria_text", "vocab_size": 300, "moe_num_experts": 5, "moe_topk": 2, "moe_num_shared_experts": 2,
                "intermediate_size": 32,
            },
        },
    ),
    ARIA_FILES,
    ("<|img|>", "<fim_prefix>", "<fim_suffix>"),
)  # fmt: skip
