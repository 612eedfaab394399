"""Chameleon in both of its forms, as released checkpoints are configured."""

from __future__ import annotations

from tests.gpu_executor.models.checkpoints import BASE, Case
from tests.gpu_executor.models.media_checkpoints import MediaCheckpoint

TOKENS = ("<image>", "<racm3:break>", "<eoss>", "<reserved08706>")  # ids 3 to 6
_NUM_CODES, _FIRST_CODE = 12, 300
_LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
VOCABULARY = {name: 3 + index for index, name in enumerate(TOKENS)} | {
    f"IMGIMG{str(code).translate(_LETTERS)}Z": _FIRST_CODE + (5 * code) % _NUM_CODES for code in range(_NUM_CODES)
}
CONFIG = BASE | {
    "model_type": "chameleon", "vocab_size": 320, "vocabulary_map": VOCABULARY, "model_parallel_size": 1,
    "vq_config": {
        "model_type": "chameleon_vqgan", "attn_resolutions": [16], "attn_type": "vanilla", "base_channels": 32,
        "channel_multiplier": [1, 2, 1], "double_latent": False, "dropout": 0.0, "embed_dim": 8, "in_channels": 3,
        "latent_channels": 8, "num_embeddings": _NUM_CODES, "num_res_blocks": 2, "resolution": 32,
    },
}  # fmt: skip
FILES = {
    "preprocessor_config.json": {
        "crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0],
        "image_processor_type": "ChameleonImageProcessor", "processor_class": "ChameleonProcessor", "resample": 1,
        "rescale_factor": 0.0078, "size": {"shortest_edge": 32},
    },
    "processor_config.json": {"processor_class": "ChameleonProcessor", "image_seq_length": 64, "image_token": "<image>"},
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>",
        "sep_token": "<reserved08706>",
    },
}  # fmt: skip
CHAMELEON, CHAMELEON_SWIN = (
    MediaCheckpoint(Case(name, "ChameleonForConditionalGeneration", CONFIG | changes, attention="sdpa"), FILES, TOKENS)
    for name, changes in (
        ("chameleon", {"num_key_value_heads": 6}),
        ("chameleon-swin", {"swin_norm": True, "rms_norm_eps": 1e-6}),
    )
)
