"""PaliGemma and PaliGemma 2, as released checkpoints are configured."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import Case
from tests.gpu_executor.models.media_cases.llava import IMAGE, IMAGE_ID, SIGLIP, SIGLIP_FILES
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint

GEMMA = {
    "model_type": "gemma", "vocab_size": 320, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "intermediate_size": 80, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip
FILES = {
    "preprocessor_config.json": SIGLIP_FILES["preprocessor_config.json"]
    | {"image_seq_length": 16, "processor_class": "PaliGemmaProcessor"}
}


def _checkpoint(name: str, text: dict[str, Any]) -> MediaCheckpoint:
    config = {
        "model_type": "paligemma", "text_config": text, "vision_config": SIGLIP | {"projection_dim": 48}, "hidden_size": 48,
        "projection_dim": 48, "image_token_index": IMAGE_ID, "vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    case = Case(name, "PaliGemmaForConditionalGeneration", config)
    return MediaCheckpoint(case, FILES, (IMAGE,))


PALIGEMMA = _checkpoint("paligemma", GEMMA)
PALIGEMMA_2 = _checkpoint(
    "paligemma-2",
    GEMMA
    | {"model_type": "gemma2", "sliding_window": 12, "query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0},
)
