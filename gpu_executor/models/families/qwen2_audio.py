"""Qwen2-Audio (Chu et al., 2024): Whisper's encoder in front of Qwen2."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.text_model import text_model
from gpu_executor.models.families.towers import with_tying
from gpu_executor.models.families.whisper import read_whisper, whisper_rules
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.towers.qwen2_audio import Qwen2Audio

_MODEL = r"(?:model\.)?"
_ENCODER = {
    "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layers": 32, "num_mel_bins": 128,
    "max_source_positions": 1500,
}  # fmt: skip


@architecture("Qwen2AudioForConditionalGeneration", inputs=("text", "audio"), examples="Qwen2-Audio")
def qwen2_audio(config: ConfigReader, architecture: str) -> Resolved:
    prefix = rf"(?:{_MODEL}language_model\.)?"
    resolved = text_model(with_tying(config, "text_config"), "text_config", prefix=prefix, default_type="qwen2")
    encoder = read_whisper(config.section("audio_config").with_defaults(**_ENCODER))
    tower = Qwen2Audio(encoder, resolved.spec.decoder.hidden_size)
    rules = (
        *resolved.rules,
        *whisper_rules(_MODEL + r"audio_tower\.", "tower.encoder.", "tower.norm"),
        rename(_MODEL + r"multi_modal_projector\.linear\.(weight|bias)", r"tower.projector.\1"),
    )
    spec = dataclasses.replace(resolved.spec, architecture=architecture, tower=tower)
    return dataclasses.replace(resolved, spec=spec, rules=rules)
