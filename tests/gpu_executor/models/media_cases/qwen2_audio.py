"""Qwen2-Audio as it is released, with an encoder that hears two seconds."""

from __future__ import annotations

from typing import Any

from tests.gpu_executor.models.checkpoints import BASE, Case
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint

AUDIO, AUDIO_BOS, AUDIO_EOS = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
ENCODER = {
    "model_type": "qwen2_audio_encoder", "num_mel_bins": 16, "d_model": 32, "encoder_layers": 2,
    "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "max_source_positions": 100, "activation_function": "gelu",
    "scale_embedding": False,
}  # fmt: skip
FILES: dict[str, Any] = {
    "preprocessor_config.json": {
        "chunk_length": 2, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16, "hop_length": 160,
        "n_fft": 400, "n_samples": 32000, "nb_max_frames": 200, "padding_side": "right", "padding_value": 0.0,
        "processor_class": "Qwen2AudioProcessor", "return_attention_mask": True, "sampling_rate": 16000,
    },
}  # fmt: skip
QWEN2_AUDIO = MediaCheckpoint(
    Case(
        "qwen2-audio",
        "Qwen2AudioForConditionalGeneration",
        {
            "model_type": "qwen2_audio", "audio_token_index": 3, "audio_config": ENCODER,
            "text_config": BASE | {"model_type": "qwen2", "vocab_size": 270},
        },
    ),
    FILES,
    (AUDIO, AUDIO_BOS, AUDIO_EOS),
)  # fmt: skip
