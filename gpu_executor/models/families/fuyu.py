"""Fuyu (Adept, 2023): Persimmon that takes patches of a picture through one linear, without a tower."""

from __future__ import annotations

import dataclasses

from gpu_executor.models.config_reader import ConfigReader
from gpu_executor.models.families.text_model import text_model
from gpu_executor.models.families.towers import with_tying
from gpu_executor.models.registry import Resolved, architecture
from gpu_executor.models.rules import rename
from gpu_executor.models.towers.fuyu import FuyuPatches

# What transformers' config class means where a file does not say.
_PERSIMMON = {
    "vocab_size": 262144, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 36,
    "num_attention_heads": 64, "max_position_embeddings": 16384, "rope_theta": 25000.0,
}  # fmt: skip


@architecture("FuyuForCausalLM", inputs=("text", "image"), examples="Fuyu 8B")
def fuyu(config: ConfigReader, architecture: str) -> Resolved:
    if not config.section("text_config").data:  # older files have the text's keys beside those of patches
        config = config.updated({"text_config": config.data})
    text = with_tying(config, "text_config").section("text_config").with_defaults(**_PERSIMMON)
    resolved = text_model(
        config.updated({"text_config": text.data}),
        "text_config",
        prefix=r"(?:(?:model\.)?language_model\.)?",
        architecture="PersimmonForCausalLM",
    )
    patches = FuyuPatches(
        config.integer("patch_size", default=30),
        config.integer("num_channels", default=3),
        resolved.spec.decoder.hidden_size,
    )
    rules = (*resolved.rules, rename(r"(?:model\.)?vision_embed_tokens\.(weight|bias)", r"tower.projector.\1"))
    spec = dataclasses.replace(resolved.spec, architecture=architecture, tower=patches)
    return dataclasses.replace(resolved, spec=spec, rules=rules)
