"""Fuyu as it is released: the text's keys beside those of patches."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import Case
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint

FILES: dict[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "FuyuImageProcessor", "do_normalize": True, "do_pad": True, "do_rescale": True,
        "do_resize": True, "image_mean": 0.5, "image_std": 0.5, "padding_mode": "constant", "padding_value": 1.0,
        "patch_size": {"height": 6, "width": 6}, "resample": 2, "rescale_factor": 0.00392156862745098,
        "size": {"height": 36, "width": 48}, "processor_class": "FuyuProcessor",
    },
}  # fmt: skip
FUYU = MediaCheckpoint(
    Case(
        "fuyu",
        "FuyuForCausalLM",
        {
            "model_type": "fuyu", "vocab_size": 300, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
            "num_attention_heads": 3, "max_position_embeddings": 256, "hidden_act": "relu2", "layer_norm_eps": 1e-5,
            "qk_layernorm": True, "rope_theta": 25000.0, "rope_scaling": None, "partial_rotary_factor": 0.5,
            "image_size": 300, "patch_size": 6, "num_channels": 3, "image_token_id": 3, "tie_word_embeddings": False,
        },
    ),
    FILES,
    ("|SPEAKER|", "|NEWLINE|", "<0x04>"),
)  # fmt: skip
