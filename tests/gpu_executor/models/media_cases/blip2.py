"""BLIP-2 as it is released, with OPT."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import Case
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint

OPT = {
    "model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 2,
    "ffn_dim": 80, "num_attention_heads": 6, "max_position_embeddings": 256, "word_embed_proj_dim": 48,
    "do_layer_norm_before": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FILES: dict[str, Any] = {
    "preprocessor_config.json": {
        "image_processor_type": "BlipImageProcessor", "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
        "do_resize": True, "size": {"height": 28, "width": 28}, "resample": 3, "rescale_factor": 0.00392156862745098,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "Blip2Processor",
    },
    "processor_config.json": {"num_query_tokens": 5, "processor_class": "Blip2Processor"},
}  # fmt: skip
BLIP2 = MediaCheckpoint(
    Case(
        "blip2",
        "Blip2ForConditionalGeneration",
        {
            "model_type": "blip-2", "image_token_index": 3, "num_query_tokens": 5, "text_config": OPT,
            "use_decoder_only_language_model": True,
            "vision_config": {
                "model_type": "blip_2_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "image_size": 28, "patch_size": 7, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
                "qkv_bias": True,
            },
            "qformer_config": {
                "model_type": "blip_2_qformer", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
                "num_attention_heads": 3, "cross_attention_frequency": 2, "encoder_hidden_size": 32, "vocab_size": 10,
            },
        },
    ),
    FILES,
    ("<image>",),
)  # fmt: skip
