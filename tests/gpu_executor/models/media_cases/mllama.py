"""Llama 3.2 Vision, as released checkpoints are configured."""

from __future__ import annotations

from pathlib import Path

from tests.gpu_executor.models.checkpoints import BASE, Case
from tests.gpu_executor.models.media_checkpoints import SPECIALS, MediaCheckpoint
from tests.preprocess.processors.byte_tokenizer import byte_level

# Released checkpoints have their control tokens behind the text's, and the picture's behind the vocabulary.
IMAGE, VOCAB_SIZE = "<|image|>", 259
CONFIG = {
    "model_type": "mllama", "image_token_index": VOCAB_SIZE,
    "text_config": BASE | {
        "model_type": "mllama_text_model", "vocab_size": VOCAB_SIZE, "num_hidden_layers": 5, "cross_attention_layers": [1, 3],
        "rope_scaling": {
            "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
    },
    "vision_config": {
        "model_type": "mllama_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_global_layers": 2, "attention_heads": 4, "image_size": 16, "patch_size": 8, "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 2], "vision_output_dim": 96, "norm_eps": 1e-5, "num_channels": 3,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    },
}  # fmt: skip
FILES = {
    "preprocessor_config.json": {
        "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "MllamaImageProcessor", "max_image_tiles": 4, "resample": 2,
        "rescale_factor": 0.00392156862745098, "size": {"height": 16, "width": 16}, "processor_class": "MllamaProcessor",
    },
}  # fmt: skip


class MllamaCheckpoint(MediaCheckpoint):
    """Whose picture's token is behind the vocabulary."""

    def write_files(self, folder: Path) -> None:
        super().write_files(folder)
        tokenizer = byte_level(*SPECIALS, bos=SPECIALS[1])
        tokenizer.add_special_tokens([IMAGE])
        assert tokenizer.token_to_id(IMAGE) == VOCAB_SIZE
        tokenizer.save(str(folder / "tokenizer.json"))


MLLAMA = MllamaCheckpoint(Case("mllama", "MllamaForConditionalGeneration", CONFIG, attention="sdpa"), FILES, (IMAGE,))
